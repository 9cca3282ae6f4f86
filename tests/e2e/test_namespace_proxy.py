# SPDX-License-Identifier: Apache-2.0
"""A client on loopback, the namespace proxy, the agent and a fake Nova: the whole path in real processes."""

import http.client
import os
import pathlib
import signal
import socket

import pytest

from tests.e2e.conftest import BIN, eventually, free_port, request
from tests.e2e.test_agent import Load
from tests.ipv6_loopback import needs_ipv6_loopback

PASSWORD = '/openstack/2013-04-04/password'


def test_request_is_answered_by_nova(agent, proxy, guest, cloud):
    agent()
    _, port = proxy()
    status, headers, body = guest(port)
    assert (status, headers['x-nova']) == (200, 'yes')
    assert body == b'{"uuid": "instance-a", "path": "/openstack/latest/meta_data.json"}'
    assert guest(port, 'HEAD')[2] == b''
    assert guest(port, 'POST', PASSWORD, body=b'secret' * 1000)[0] == 200
    received = [(seen['REQUEST_METHOD'], seen['HTTP_X_FORWARDED_FOR'], len(seen['body'])) for seen in cloud.nova.seen]
    assert received == [('GET', '127.0.0.1', 0), ('HEAD', '127.0.0.1', 0), ('POST', '127.0.0.1', 6000)]


def test_request_target_is_forwarded_unchanged(agent, proxy, guest, cloud):
    targets = ['/a%2fb//../x', '/%C3%A9', '/?q=%zz', '//x']
    agent()
    _, port = proxy()
    assert [guest(port, target=target)[0] for target in targets] == [200] * len(targets)
    assert [seen['RAW_URI'] for seen in cloud.nova.seen] == targets


def test_forged_identity_headers_are_removed(agent, proxy, guest, cloud):
    agent()
    _, port = proxy()
    forged = {
        'X-Forwarded-For': '10.1.1.2', 'X_Forwarded_For': '10.1.1.2', 'X-Quantum-Router-ID': 'router-b',
        'X_Quantum_Router_ID': 'router-b', 'X-Quantum-Network-ID': 'network-c', 'X-Instance-ID': 'instance-b',
        'X-Tenant-ID': 'project-b', 'X-Metadata-Provider': 'lb', 'X-Metadata-Remaining-Ms': '1',
        'Connection': 'X-Quantum-Router-ID, X-Forwarded-For', 'X-Neutron-Router-ID': 'router-b',
    }  # fmt: skip
    status, _, body = guest(port, headers=forged)
    assert status == 200
    assert b'instance-a' in body


def raw(port, data):
    """Send ``data``; returns everything until the proxy closes the connection."""
    with socket.create_connection(('127.0.0.1', port), 15) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        received = b''
        while chunk := sock.recv(65536):
            received += chunk
    return received


def test_chunked_body_is_forwarded_with_content_length(agent, proxy, cloud):
    agent()
    _, port = proxy()
    head = b'POST /openstack/2013-04-04/password HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n'
    assert raw(port, head + b'3\r\nsec\r\n3\r\nret\r\n0\r\n\r\n').startswith(b'HTTP/1.1 200 ')
    assert (cloud.nova.seen[0]['body'], cloud.nova.seen[0]['CONTENT_LENGTH']) == (b'secret', '6')


def test_body_over_the_limit_is_answered_413(agent, proxy, guest, cloud):
    agent()
    _, port = proxy()
    assert guest(port, 'POST', PASSWORD, body=b'x' * ((1 << 20) + 1))[0] == 413
    assert cloud.nova.seen == []


def test_retry_while_a_killed_agent_is_restarted(agent, proxy, guest):
    first = agent()
    # The start of a traced agent may take longer than the default on a busy machine.
    _, port = proxy(None, '--request_timeout=60')
    with Load(lambda: guest(port, timeout_s=90)) as load:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        agent()
        done = load.completed
        eventually(lambda: load.completed > done + 40, 'requests are answered')
    assert load.failures == []


def test_retry_while_the_agent_is_stopped_and_started(agent, proxy, guest):
    first = agent()
    # The start of a traced agent may take longer than the default on a busy machine.
    _, port = proxy(None, '--request_timeout=60')
    with Load(lambda: guest(port, timeout_s=90)) as load:
        first.kill(signal.SIGTERM)
        assert first.wait() == 0
        agent()
        done = load.completed
        eventually(lambda: load.completed > done + 40, 'requests are answered')
    assert load.failures == []


def test_sighup_under_load_fails_no_request(agent, proxy, guest):
    programs = [agent()]
    program, port = proxy()
    programs.append(program)
    with Load(lambda: guest(port)) as load:
        for program in programs:
            before = program.workers()
            program.kill(signal.SIGHUP)
            eventually(lambda p=program, before=before: not set(before) & set(p.workers()), 'the workers are new')
    assert load.failures == []


def test_timeout_without_an_agent_is_answered_503(proxy, guest):
    program, port = proxy(None, '--answer_within=0.5')
    status, headers, _ = guest(port)
    assert (status, headers['retry-after']) == (503, '1')
    eventually(lambda: 'no response from the metadata agent' in program.text(), 'it says so')


@needs_ipv6_loopback
def test_several_addresses_are_served_after_a_reload(proxy):
    program, port = proxy(None, '--metadata_host=::1', '--answer_within=0.1')

    def both():
        return [
            request(http.client.HTTPConnection(host, port, timeout=20), 'GET', '/')[0] for host in ('127.0.0.1', '::1')
        ]

    assert both() == [503, 503]
    before = program.workers()
    program.kill(signal.SIGHUP)
    eventually(lambda: program.workers() and not set(before) & set(program.workers()), 'the workers are new')
    assert both() == [503, 503]


def test_further_address_that_fails_does_not_affect_the_first(proxy, guest):
    program, port = proxy(None, '--metadata_host=fe80::a9fe:a9fe%no-interface', '--answer_within=0.1')
    assert guest(port)[0] == 503
    assert 'Serving 127.0.0.1 only: ' in program.text()


@pytest.fixture
def pid_path(tmp_path):
    return tmp_path / 'pids' / 'r.pid'


def test_pid_file_has_the_masters_pid_and_is_removed_at_its_end(proxy, pid_path):
    program, _ = proxy()
    assert pid_path.read_text() == f'{program.pid}\n'
    program.kill(signal.SIGTERM)
    assert program.wait() == 0
    assert not pid_path.exists()


def test_pid_file_stays_when_workers_are_replaced(proxy, pid_path):
    program, _ = proxy()
    eventually(program.workers, 'there is a worker')
    before = program.workers()
    program.kill(signal.SIGHUP)
    eventually(lambda: program.workers() and not set(before) & set(program.workers()), 'the workers are new')
    assert pid_path.read_text() == f'{program.pid}\n'


def test_second_proxy_for_the_same_router_is_refused(proxy, programs, pid_path, cloud):
    first, _ = proxy()
    second = programs(
        'quantum-ns-metadata-proxy', '--nodaemonize', '--router_id=router-a', f'--pid_file={pid_path}',
        f'--metadata_port={free_port()}', f'--state_path={cloud.state_path}',
    )  # fmt: skip
    assert second.wait() == 1
    assert second.text() == (
        f'quantum-ns-metadata-proxy: router-a: already running with pid {first.pid} (pid file {pid_path})\n'
    )


def test_proxy_starts_again_after_a_sigkill_of_the_master(proxy, pid_path):
    """The pid file is stale, and the old workers use the port for up to a second more."""
    first, port = proxy()
    eventually(first.workers, 'there is a worker')
    first.kill(signal.SIGKILL)
    first.wait()
    assert pid_path.read_text() == f'{first.pid}\n'
    second, _ = proxy(port)
    eventually(lambda: pid_path.read_text() == f'{second.pid}\n', 'the pid file is the new one')
    eventually(second.workers, 'there is a worker')


def test_command_line_keeps_the_router_id(proxy):
    """Process managers search for it."""
    program, _ = proxy()
    eventually(program.workers, 'there is a worker')
    assert '--router_id=router-a' in pathlib.Path(f'/proc/{program.pid}/cmdline').read_text()


def test_daemonize_returns_when_the_proxy_listens(tmp_path, cloud, pid_path):
    port = free_port()
    argv = [
        str(BIN / 'quantum-ns-metadata-proxy'), '--router_id=router-a', f'--pid_file={pid_path}',
        f'--metadata_port={port}', '--metadata_host=127.0.0.1', f'--state_path={cloud.state_path}',
        f'--log-file={tmp_path / "proxy.log"}',
    ]  # fmt: skip
    assert os.spawnv(os.P_WAIT, argv[0], argv) == 0
    pid = int(pid_path.read_text())
    try:
        socket.create_connection(('127.0.0.1', port), 5).close()
        assert os.getsid(pid) != os.getsid(0)
        assert os.spawnv(os.P_WAIT, argv[0], argv) == 1
    finally:
        os.kill(pid, signal.SIGTERM)
    eventually(lambda: not pid_path.exists(), 'it ends')


@pytest.mark.parametrize(
    ('argv', 'code', 'words'),
    [
        ([], 1, 'no namespace given; use --router_id, --network_id'),
        (['--router_id=r', '--metadata_port=x'], 2, 'metadata_port'),
        (['--router_id=r', '--metadata_host=nowhere'], 1, 'r: metadata_port: cannot listen on nowhere'),
        (['--router_id=r', '--pid_file=/proc/none/r.pid'], 1, 'r: pid_file /proc/none/r.pid: '),
        (['--router_id=r', '--listen_fd=77'], 1, 'r: listen_fd = 77: not a socket'),
        (['--router_id=r', '--log-file=/proc/none/r.log'], 1, 'r: log_file /proc/none/r.log: '),
    ],
)
def test_wrong_command_line_is_refused_with_a_reason(programs, argv, code, words):
    program = programs('quantum-ns-metadata-proxy', '--nodaemonize', *argv)
    assert program.wait() == code
    assert words in program.text()
    assert 'Traceback' not in program.text()
