# SPDX-License-Identifier: Apache-2.0
"""A real cloud-init, Debian's package, booting inside a guest's namespace and unable to touch the machine.

It runs as ``cloud-init init`` does in a boot, in mount, host name, process and IPC namespaces of its own. The
machine's file system is read-only there; what cloud-init writes goes to a directory that the test gives. Nothing of
cloud-init is replaced: its own detection is told by the environment of process 1, as LXD tells it.
"""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAM = '/usr/bin/cloud-init'

# No module runs and no network is configured: all that is left of a boot is finding and keeping the metadata.
CONFIG = """\
datasource_list: [{datasource}]
datasource: {{Ec2: {{strict_id: false}}}}
network: {{config: disabled}}
preserve_hostname: true
users: []
cloud_init_modules: []
system_info: {{distro: debian, paths: {{cloud_dir: /var/lib/cloud, run_dir: /run/cloud-init}}}}
"""

# What is bound stays writable when the root becomes read-only; /tmp comes last, because ROOT may lie in it.
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
class Boot:
    """What a boot came to.

    ``platform`` is the datasource's name, '' without one; ``crawled`` its own record of what it was told (without
    random_seed, which is another one each time); then what was kept of user-data and vendor-data; ``log`` is not
    compared, ``seconds`` neither.
    """

    platform: str
    crawled: dict[str, Any]
    user_data: bytes
    vendor_data: bytes
    vendor_data2: bytes
    seconds: float = field(compare=False)
    log: str = field(compare=False, repr=False)


def boot(namespace: str, datasource: str, root: Path) -> Boot:
    """Let ``datasource`` (OpenStack, Ec2) run in the namespace; ``root`` is an empty directory for what it writes."""
    for part in ('etc/cloud', 'var/lib', 'var/log', 'run', 'tmp'):
        (root / part).mkdir(parents=True)
    (root / 'etc/cloud/cloud.cfg').write_text(CONFIG.format(datasource=datasource))
    # A name server that refuses at once, as a guest has one that answers at once.
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
    said = f'exit code {done.returncode}\n{done.stdout}{done.stderr}\n{_read(root / "var/log/cloud-init.log").decode()}'
    record = json.loads(_read(root / 'run/cloud-init/instance-data-sensitive.json') or '{}')
    crawled = record.get('ds', {})
    crawled.get('meta_data', {}).pop('random_seed', None)
    instance = next((root / 'var/lib/cloud/instances').glob('*'), root / 'none')
    kept = [_read(instance / f'{name}.txt') for name in ('user-data', 'vendor-data', 'vendor-data2')]
    return Boot(record.get('v1', {}).get('platform', ''), crawled, *kept, seconds=seconds, log=said)


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b''
