# SPDX-License-Identifier: Apache-2.0
"""attach where another program listens on the port already, e.g. Neutron's haproxy: it is named, nothing changes."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cloud import Cloud

from .keeper_host import KeeperHost
from .router_topology import METADATA, get, saved_rules

pytestmark = pytest.mark.netns

PROGRAM = str(Path(sys.prefix, 'bin', 'metadata-wsgi'))
LISTEN = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b'the other one')
server = http.server.HTTPServer(('', 9697), Handler)
print('up', flush=True)
server.serve_forever()
"""


@pytest.fixture
def other(topology):
    """Another program on port 9697, with its own redirect."""
    run = ['ip', 'netns', 'exec', topology.router]
    process = subprocess.Popen(
        [*run, sys.executable, '-u', '-c', LISTEN], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout.readline() == b'up\n'
    redirect = f'-t nat -A PREROUTING -d {METADATA} -p tcp --dport 80 -j REDIRECT --to-ports 9697'
    subprocess.run([*run, 'iptables', *redirect.split()], check=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_port_in_use_in_mode_process_is_reported_and_changes_nothing(topology, other, tmp_path):
    before = saved_rules(topology.router, 'iptables'), saved_rules(topology.router, 'ip6tables')
    begun = time.monotonic()
    done = subprocess.run(
        [PROGRAM, 'attach', '--mode=process', f'--router-id={topology.uuid}', f'--state-path={tmp_path}'],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    took_s = time.monotonic() - begun
    print(f'reported after {took_s:.1f} s')
    assert done.returncode == 1
    assert f'port 9697 in {topology.router} is used by pid {other.pid} (python' in done.stderr
    assert 'use --metadata-port 9698' in done.stderr
    assert (saved_rules(topology.router, 'iptables'), saved_rules(topology.router, 'ip6tables')) == before
    assert get(topology.guest, METADATA) == 'the other one'


def test_port_in_use_in_mode_shared_is_reported_and_changes_nothing(topology, other, directory):
    with Cloud(directory) as cloud:
        host = KeeperHost(directory, cloud)
        try:
            host.start()
            before = saved_rules(topology.router, 'iptables'), saved_rules(topology.router, 'ip6tables')
            code, _, err = host.metadata_wsgi('attach', '--mode=shared', f'--router-id={topology.uuid}')
            assert code == 1
            assert f'port 9697 in {topology.router} is used by pid {other.pid} (python' in err
            assert (saved_rules(topology.router, 'iptables'), saved_rules(topology.router, 'ip6tables')) == before
            assert host.attachments.entries() == []
        finally:
            host.close()


def test_another_port_is_possible_beside_it(topology, other, tmp_path):
    standin = Path(__file__).with_name('fake_namespace_proxy.py')
    attach = [
        PROGRAM,
        'attach',
        '--mode=process',
        f'--router-id={topology.uuid}',
        f'--state-path={tmp_path}',
        f'--program={standin}',
    ]
    subprocess.run([*attach, '--metadata-port=9698', '--no-wait'], check=True, capture_output=True)
    try:
        assert get(topology.guest, METADATA) == f'proxy of {topology.uuid}'
    finally:
        detach = [PROGRAM, 'detach', f'--router-id={topology.uuid}', f'--state-path={tmp_path}']
        subprocess.run(detach, check=True, capture_output=True)
    assert get(topology.guest, METADATA) == 'the other one'
