# SPDX-License-Identifier: Apache-2.0
"""Runs Debian's cloud-init inside the network namespace of a guest.

It runs ``cloud-init init`` in mount, UTS, PID and IPC namespaces of its own. The machine's file system is read-only
there. cloud-init writes to a directory that the test passes. cloud-init itself is unchanged: it detects the platform
from the environment of process 1, as it does under LXD.
"""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAM = '/usr/bin/cloud-init'

# No module runs and no network is configured. What remains of a boot is to find, read and store the metadata.
CONFIG = """\
datasource_list: [{datasource}]
datasource: {{Ec2: {{strict_id: false}}}}
network: {{config: disabled}}
preserve_hostname: true
users: []
cloud_init_modules: []
system_info: {{distro: debian, paths: {{cloud_dir: /var/lib/cloud, run_dir: /run/cloud-init}}}}
"""

# The bind mounts stay writable when the root becomes read-only. /tmp comes last because ROOT may be inside it.
ISOLATE = """\
set -e
mount --make-rprivate /
for part in etc/cloud etc/resolv.conf var/lib var/log run tmp; do mount --bind "$ROOT/$part" "/$part"; done
for hardware in /sys/class/dmi /sys/hypervisor; do
  if [ -d "$hardware" ]; then mount -t tmpfs none "$hardware"; fi
done
mount -o remount,bind,ro /
exec "$PROGRAM" init
"""


@dataclass(frozen=True)
class BootResult:
    """The result of one boot.

    ``platform`` is the name of the datasource, '' if none was found. ``crawled`` is cloud-init's record of the
    metadata it read, without random_seed, which differs each time. ``user_data``, ``vendor_data`` and
    ``vendor_data2`` are what it stored. ``log`` and ``seconds`` are not part of a comparison.
    """

    platform: str
    crawled: dict[str, Any]
    user_data: bytes
    vendor_data: bytes
    vendor_data2: bytes
    seconds: float = field(compare=False)
    log: str = field(compare=False, repr=False)


def run_boot(namespace: str, datasource: str, root: Path) -> BootResult:
    """Boot with ``datasource`` (OpenStack, Ec2) in the namespace; cloud-init writes to the empty directory ``root``."""
    for part in ('etc/cloud', 'var/lib', 'var/log', 'run', 'tmp'):
        (root / part).mkdir(parents=True)
    (root / 'etc/cloud/cloud.cfg').write_text(CONFIG.format(datasource=datasource))
    # A name server that refuses at once; a real instance has one that responds at once.
    (root / 'etc/resolv.conf').write_text('nameserver 127.0.0.1\n')
    environment = {
        'PATH': '/usr/sbin:/usr/bin:/sbin:/bin',
        'PROGRAM': PROGRAM,
        'ROOT': str(root),
        'product_name': 'OpenStack Nova' if datasource == 'OpenStack' else '',
    }
    began = time.monotonic()
    done = subprocess.run(
        [
            *('ip', 'netns', 'exec', namespace, 'unshare', '--mount', '--uts', '--ipc', '--pid', '--fork'),
            *('--kill-child', '--mount-proc', 'sh', '-c', ISOLATE),
        ],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    seconds = time.monotonic() - began
    log = f'exit code {done.returncode}\n{done.stdout}{done.stderr}\n{_read(root / "var/log/cloud-init.log").decode()}'
    record = json.loads(_read(root / 'run/cloud-init/instance-data-sensitive.json') or '{}')
    crawled = record.get('ds', {})
    crawled.get('meta_data', {}).pop('random_seed', None)
    instance = next((root / 'var/lib/cloud/instances').glob('*'), root / 'none')
    stored = [_read(instance / f'{name}.txt') for name in ('user-data', 'vendor-data', 'vendor-data2')]
    return BootResult(record.get('v1', {}).get('platform', ''), crawled, *stored, seconds=seconds, log=log)


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b''
