# SPDX-License-Identifier: Apache-2.0
"""A host without ip6tables, or with one that fails: IPv4 is served, IPv6 is a message, nothing is left half done."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from metadata_wsgi.netns import interface_state, proxy_process

from .router_topology import METADATA, get, saved_rules

pytestmark = pytest.mark.netns

PROGRAM = str(Path(sys.prefix, 'bin', 'metadata-wsgi'))
STANDIN = str(Path(__file__).with_name('fake_namespace_proxy.py'))
FAILS = '#!/bin/sh\necho "ip6tables: Table does not exist (do you need to insmod?)" >&2\nexit 3\n'
MISSING = None


@pytest.fixture(params=[FAILS, MISSING], ids=['fails', 'missing'])
def run(request, topology, tmp_path):
    """Runs metadata-wsgi in a mount namespace in which the programs of ip6tables are replaced or not executable."""
    replacement = tmp_path / 'replacement'
    replacement.write_text(request.param or '')
    replacement.chmod(0o755 if request.param else 0o644)
    programs = [path for path in Path('/usr/sbin').glob('ip6tables*') if path.exists()]
    # Most are links to one program, which serves iptables too: the links are replaced, in a copy of the directory.
    sbin = tmp_path / 'sbin'
    sbin.mkdir()
    for path in Path('/usr/sbin').iterdir():
        if path not in programs:
            (sbin / path.name).symlink_to(path.resolve())
    if request.param:
        for path in programs:
            (sbin / path.name).symlink_to(replacement)
    environ = {**os.environ, 'PATH': f'{sbin}:/usr/bin:/bin'}
    script = f'mount --bind {sbin} /usr/sbin && exec "$@"'

    def run(verb, *options):
        argv = [PROGRAM, verb, f'--state-path={tmp_path}', *options]
        # The links point to /usr/sbin itself, which is hidden there.
        return subprocess.run(
            ['unshare', '--mount', 'sh', '-c', f'mkdir -p {tmp_path}/real && mount --bind /usr/sbin {tmp_path}/real && '
             + script, 'sh', *argv],
            capture_output=True, text=True, check=False, env=environ, timeout=60,
        )  # fmt: skip

    for link in sbin.iterdir():
        target = os.readlink(link)
        if target.startswith('/usr/sbin/'):
            link.unlink()
            link.symlink_to(f'{tmp_path}/real/{target.removeprefix("/usr/sbin/")}')
    yield run
    proxy_process.stop(f'{tmp_path}/external/pids/{topology.uuid}.pid', topology.uuid)


def test_ipv4_is_served_and_ipv6_is_one_message(topology, run):
    done = run('attach', '--mode=process', f'--router-id={topology.uuid}', f'--program={STANDIN}')
    assert done.returncode == 0, done.stderr
    assert 'is attached without IPv6: ' in done.stderr
    assert 'ip6tables' in done.stderr
    assert get(topology.guest, METADATA) == f'proxy of {topology.uuid}'
    # Without the rules that close the port the proxy must not listen on IPv6, nor have the address there.
    assert get(topology.router, '::1', 9697) == ''
    addresses = subprocess.run(
        ['ip', '-n', topology.router, '-6', 'address'], capture_output=True, text=True, check=True
    )
    assert interface_state.ADDRESS not in addresses.stdout

    done = run('attached')
    assert (done.returncode, done.stderr) == (1, '')
    problems = [line for line in done.stdout.splitlines() if '!' in line]
    assert problems == ['    ! there are no IPv6 rules, so only IPv4 is served; "attach" prints the reason']

    done = run('detach', f'--router-id={topology.uuid}')
    assert (done.returncode, done.stderr) == (0, '')
    assert saved_rules(topology.router, 'iptables') == []


def test_failed_start_leaves_no_rule(topology, run, tmp_path):
    done = run('attach', '--mode=process', f'--router-id={topology.uuid}', '--program=false')
    assert done.returncode == 1
    assert (saved_rules(topology.router, 'iptables'), saved_rules(topology.router, 'ip6tables')) == ([], [])
