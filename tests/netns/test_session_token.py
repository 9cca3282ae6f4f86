# SPDX-License-Identifier: Apache-2.0
"""The IP TTL of session token responses: they reach the guest, not a container behind it. Real proxy and agent.

::

    [pod] 172.20.0.2 --- 172.20.0.1 [guest, which masquerades] 10.1.1.2 --- qr-in [router: rules, namespace proxy]
"""

import http.client
import subprocess
import sys
from pathlib import Path

import pytest

from metadata_wsgi.netns import namespaces, proxy_process
from metadata_wsgi.netns.attach import Attacher
from metadata_wsgi.netns.proxy_command import ProxyCommand
from metadata_wsgi.netns.runner import SubprocessRunner
from metadata_wsgi.netns.target import AttachTarget
from tests.cloud import SHIPPED
from tests.e2e.conftest import eventually, rejects_unidentified_request

from .router_topology import METADATA, ip

pytestmark = pytest.mark.netns

BIN = Path(sys.prefix, 'bin')
TTL, TOKEN = 'X-aws-ec2-metadata-token-ttl-seconds', 'X-aws-ec2-metadata-token'


def send(namespace, method, metadata_path, headers=None, within_s=20.0):
    """(status, headers, body) of a request from inside the namespace; None after a timeout."""

    def inside():
        connection = http.client.HTTPConnection(METADATA, 80, timeout=within_s)
        try:
            connection.request(method, metadata_path, headers=headers or {})
            response = connection.getresponse()
            return response.status, response.headers, response.read().decode()
        except TimeoutError:
            return None
        finally:
            connection.close()

    return namespaces.run_in(namespace, inside)


@pytest.fixture
def pod(topology):
    """A container in the guest: one IP hop further, with the guest's source address."""
    name = f'pod-{topology.uuid}'
    try:
        ip('netns', 'add', name)
        ip('-n', name, 'link', 'add', 'eth0', 'type', 'veth', 'peer', 'name', 'pod0', 'netns', topology.guest)
        for namespace, link, cidr in ((name, 'eth0', '172.20.0.2/24'), (topology.guest, 'pod0', '172.20.0.1/24')):
            ip('-n', namespace, 'address', 'add', cidr, 'dev', link)
            ip('-n', namespace, 'link', 'set', link, 'up')
        ip('-n', name, 'route', 'add', 'default', 'via', '172.20.0.1')
        ip('netns', 'exec', topology.guest, 'sysctl', '-qw', 'net.ipv4.ip_forward=1')
        ip(
            'netns',
            'exec',
            topology.guest,
            'iptables',
            '-t',
            'nat',
            '-A',
            'POSTROUTING',
            '-o',
            'eth0',
            '-j',
            'MASQUERADE',
        )
        yield name
    finally:
        ip('netns', 'delete', name)


@pytest.fixture
def metadata_path(topology, tmp_path, request):
    """The path of ``topology``'s router, with session tokens; the agent itself serves the metadata.

    Its parameter is the hop limit.
    """
    inventory = tmp_path / 'inventory.yaml'
    inventory.write_text(
        f'routers: [{{id: {topology.uuid}, networks: [n]}}]\nnetworks: [{{id: n}}]\n'
        "ports: [{id: p, network: n, mac: '52:54:00:00:00:01', addresses: [10.1.1.2], instance: i}]\n"
        'instances: [{id: i, project: red, name: web}]\n'
    )
    paste = tmp_path / 'api-paste.ini'
    paste.write_text(
        SHIPPED.read_text().replace('instance signature upstream', 'instance session_token signature metadata')
    )
    conf = tmp_path / 'agent.ini'
    conf.write_text(
        f'[DEFAULT]\nstate_path = {tmp_path}\nmetadata_workers = 1\nmetadata_peer_users = nobody\n'
        'metadata_proxy_shared_secret = a secret of tests\n'
        f'metadata_paste_config = {paste}\ndirectory = static\n[static]\ninventory = {inventory}\n'
        f'[metadata_app]\ninventory = {inventory}\n[session_token]\nkeys = {"k" * 32}\n'
        f'hop_limit = {getattr(request, "param", 1)}\n'
    )
    proxy = ProxyCommand(program=str(BIN / 'quantum-ns-metadata-proxy'), state_path=str(tmp_path))
    with (tmp_path / 'agent.log').open('wb') as log:
        agent = subprocess.Popen(
            [BIN / 'quantum-metadata-agent', '--config-file', conf], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        eventually(
            lambda: rejects_unidentified_request(tmp_path / 'metadata_proxy'), (tmp_path / 'agent.log').read_text
        )
        Attacher(SubprocessRunner(), proxy=proxy).attach(AttachTarget.of('router', topology.uuid), wait_for_ipv6=False)
        yield
    finally:
        proxy_process.stop(proxy.pid_file(topology.uuid), topology.uuid, timeout_s=1)
        agent.terminate()
        agent.wait(20)


def test_token_reaches_the_guest_but_not_a_container_behind_it(topology, pod, metadata_path):
    status, headers, token = send(topology.guest, 'PUT', '/latest/api/token', {TTL: '60'})
    assert (status, headers[TTL]) == (200, '60')
    assert 'X-Metadata-Hop-Limit' not in headers
    assert send(topology.guest, 'GET', '/latest/meta-data/instance-id', {TOKEN: token})[0] == 200
    assert send(topology.guest, 'GET', '/latest/meta-data/instance-id', {TOKEN: token[:-2]})[0] == 401
    # The container has a route: responses without a token reach it.
    assert send(pod, 'GET', '/latest/meta-data/')[0] == 200
    assert send(pod, 'PUT', '/latest/api/token', {TTL: 'x'})[0] == 400
    assert send(pod, 'PUT', '/latest/api/token', {TTL: '60'}, within_s=2.0) is None


@pytest.mark.parametrize('metadata_path', [2], indirect=True)
def test_hop_limit_2_lets_the_token_reach_the_container(pod, metadata_path):
    assert send(pod, 'PUT', '/latest/api/token', {TTL: '60'})[0] == 200


def test_no_token_for_a_proxy_in_the_guest(topology, metadata_path):
    assert send(topology.guest, 'PUT', '/latest/api/token', {TTL: '60', 'X-Forwarded-For': '192.0.2.1'})[0] == 403
