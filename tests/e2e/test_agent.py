# SPDX-License-Identifier: Apache-2.0
"""The agent as a process: socket, signals, reload, and the same responses from each server that runs its pipeline."""

import os
import signal
import stat
import subprocess
import sys
import threading
import time

import pytest
import webtest

from metadata_wsgi.pipeline import paste_loader
from metadata_wsgi.privileges import identity
from tests.cloud import SHIPPED
from tests.e2e.conftest import UnixConnection, accepts_connections, eventually, request

ID = {'X-Openstack-Request-Id': 'req-1b4e28ba-2fa1-11d2-883f-0016d3cca427'}
GUEST = {'X-Forwarded-For': '10.1.1.2', 'X-Quantum-Router-ID': 'router-a', **ID}
REQUESTS = [
    ('GET', '/openstack/latest/meta_data.json', GUEST, None),
    ('HEAD', '/openstack', GUEST, None),
    ('POST', '/openstack/2013-04-04/password', GUEST, b'secret' * 1000),
    ('GET', '/a%2fb//../x?q=%zz', {**GUEST, 'X-Quantum-Router-ID': 'router-b'}, None),
    ('GET', '/', {**GUEST, 'X-Forwarded-For': '10.1.1.77'}, None),
    ('GET', '/', {**GUEST, 'X-Quantum-Network-ID': 'network-c'}, None),
    ('GET', '/', ID, None),
]


def responses_of_the_socket(path):
    return [request(UnixConnection(path), method, target, headers, body) for method, target, headers, body in REQUESTS]


def responses_of_the_pipeline(cloud):
    app = webtest.TestApp(paste_loader.load(str(SHIPPED), 'agent', {'config_file': str(cloud.conf_file)}))
    responses = []
    for method, target, headers, body in REQUESTS:
        environ = {'RAW_URI': target}
        response = app.request(
            target, method=method, headers=headers, body=body or b'', environ=environ, expect_errors=True
        )
        received = {k.lower(): v for k, v in response.headers.items() if k.lower() not in ('date', 'server')}
        responses.append((response.status_int, received, response.body))
    return responses


def start_gunicorn_by_hand(programs, cloud, tmp_path, worker_class):
    """Start ``gunicorn --paste`` with the shipped paste file, whose [DEFAULT] names the configuration; its socket."""
    paste = tmp_path / 'api-paste.ini'
    paste.write_text(SHIPPED.read_text().replace('# config_file =', f'config_file = {cloud.conf_file}\n#'))
    path = tmp_path / 'by-hand'
    server = programs('gunicorn', '--paste', paste, '--bind', f'unix:{path}', '--worker-class', worker_class)
    eventually(lambda: server.process.poll() is not None or accepts_connections(path), 'gunicorn listens')
    assert server.process.poll() is None, server.text()
    return path


@pytest.mark.parametrize('worker_class', ['gevent', 'sync'])
def test_agent_gunicorn_and_in_process_pipeline_give_the_same_responses(agent, programs, cloud, tmp_path, worker_class):
    agent()
    expected = responses_of_the_socket(cloud.socket)
    received = [(seen['REQUEST_METHOD'], seen['RAW_URI'], seen['body']) for seen in cloud.nova.seen]
    assert [status for status, _, _ in expected] == [200, 200, 200, 200, 404, 400, 400]
    assert responses_of_the_socket(start_gunicorn_by_hand(programs, cloud, tmp_path, worker_class)) == expected
    assert responses_of_the_pipeline(cloud) == expected
    assert [(seen['REQUEST_METHOD'], seen['RAW_URI'], seen['body']) for seen in cloud.nova.seen] == received * 3


def test_socket_mode_owner_and_group(agent, cloud):
    agent()
    found = os.stat(cloud.socket)
    group = identity.default_identity().gid if os.getuid() == 0 else os.getgid()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o660, os.getuid(), group)


def test_listen_backlog_is_effective(agent, cloud):
    """Neutron sets it after listen(), without effect."""
    with open('/proc/sys/net/core/somaxconn') as file:
        somaxconn = int(file.read())
    cloud.configure(metadata_backlog=4096)
    agent()
    lines = subprocess.run(['ss', '-xlH'], capture_output=True, text=True, check=True).stdout.splitlines()
    (line,) = [line.split() for line in lines if str(cloud.socket) in line]
    assert int(line[3]) == min(4096, somaxconn)


def test_stale_socket_is_replaced(agent, cloud):
    first = agent()
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert cloud.socket.exists()
    agent()
    assert responses_of_the_socket(cloud.socket)[0][0] == 200


def test_start_fails_if_another_agent_listens(agent, programs, cloud):
    agent()
    second = programs('quantum-metadata-agent', '--config-file', cloud.conf_file)
    assert second.wait() == 1
    assert second.text().splitlines()[-1] == (
        f'quantum-metadata-agent: metadata_proxy_socket = {cloud.socket}: another agent is running and listens there; '
        'stop it first, or name another path'
    )
    assert responses_of_the_socket(cloud.socket)[0][0] == 200


def test_start_right_after_sigkill_of_the_master(agent, cloud):
    """The workers of the killed master may listen for up to a second more; the start retries meanwhile."""
    agent().kill(signal.SIGKILL)
    # On a busy machine they may need longer than the start retries, which tests/unit/net/test_listeners.py tests.
    eventually(lambda: not accepts_connections(cloud.socket), 'the workers have ended')
    agent()
    assert responses_of_the_socket(cloud.socket)[0][0] == 200


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'metadata_proxy_shared_secret': None}, 'metadata_proxy_shared_secret is missing from [DEFAULT] of '),
        ({'metadata_workers': -1}, 'metadata_workers in [DEFAULT] of '),
        ({'metadata_paste_config': '/nonexistent.ini'}, '/nonexistent.ini: there is no such file'),
        ({'nova_metadata_host': 'nova # here'}, 'nova_metadata_host in [DEFAULT] of '),
        ({'metadata_proxy_socket_mode': 'some'}, 'metadata_proxy_socket_mode in [DEFAULT] of '),
    ],
)
def test_invalid_configuration_fails_the_start_with_one_message(programs, cloud, options, words):
    cloud.configure(**options)
    program = programs('quantum-metadata-agent', '--config-file', cloud.conf_file)
    assert program.wait() == 1
    messages = [line for line in program.text().splitlines() if line.startswith('quantum-metadata-agent: ')]
    assert len(messages) == 1
    assert words in messages[0]
    assert 'Traceback' not in program.text()


def test_misspelt_option_logs_a_warning(agent, cloud):
    """It may be an option of another program that reads the same file."""
    cloud.configure(request_timeot=4)
    assert 'did you mean request_timeout?' in agent().text()


class Load:
    """Sends requests from some threads until it is stopped; ``failures`` has statuses other than 200 and exceptions."""

    def __init__(self, send, threads=4):
        self.failures, self.completed, self._stop = [], 0, threading.Event()
        self._send = send
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def _run(self):
        while not self._stop.is_set():
            try:
                status = self._send()[0]
                if status != 200:
                    self.failures.append(status)
            except OSError as error:
                self.failures.append(error)
            self.completed += 1

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        eventually(lambda: self.completed > 20, 'requests are answered')
        return self

    def __exit__(self, *exc):
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


def send_request(cloud):
    return request(UnixConnection(cloud.socket), 'GET', '/openstack', GUEST)


def test_reload_by_sighup_under_load_drops_no_request(agent, cloud):
    program = agent()
    with Load(lambda: send_request(cloud)) as load:
        for _ in range(2):
            before, done = program.workers(), load.completed
            program.kill(signal.SIGHUP)
            eventually(lambda before=before: not set(before) & set(program.workers()), 'the workers are new')
            eventually(lambda done=done: load.completed > done + 20, 'requests are answered')
    assert load.failures == []
    assert 'Reloaded' in program.text()


def test_reload_by_sighup_uses_new_option_values(agent, cloud):
    program = agent()
    cloud.configure(nova_metadata_host='127.0.0.1:1', request_timeout=0.2)
    program.kill(signal.SIGHUP)
    eventually(lambda: send_request(cloud)[0] == 503, 'the new value is in force')


def test_reload_by_sighup_of_an_invalid_configuration_keeps_the_old_one(agent, cloud, tmp_path):
    paste = tmp_path / 'api-paste.ini'
    paste.write_text(SHIPPED.read_text())
    cloud.configure(metadata_paste_config=paste)
    program = agent()
    workers = program.workers()
    paste.write_text(
        SHIPPED.read_text().replace('header_source instance signature', 'header_source signature instance')
    )
    program.kill(signal.SIGHUP)
    eventually(lambda: 'Not reloaded' in program.text(), 'the log has "Not reloaded"')
    assert 'put instance before signature' in program.text()
    assert send_request(cloud)[0] == 200
    assert program.workers() == workers


def test_graceful_stop_finishes_requests_and_closes_idle_keepalive_connections(agent, cloud):
    """SIGTERM: a request in progress completes; an idle keep-alive connection does not delay the stop."""
    program = agent()
    idle = UnixConnection(cloud.socket)
    idle.request('GET', '/openstack', headers=GUEST)
    assert idle.getresponse().read()
    slow, statuses = threading.Event(), []
    cloud.nova.before = lambda: (slow.set(), time.sleep(1.0))
    client = threading.Thread(target=lambda: statuses.append(send_request(cloud)[0]))
    client.start()
    assert slow.wait(60)
    program.kill(signal.SIGTERM)
    assert program.wait() == 0
    client.join(60)
    assert statuses == [200]
    assert not cloud.socket.exists()
    idle.close()


def test_killed_worker_is_replaced(agent, cloud):
    program = agent()
    (worker,) = program.workers()
    os.kill(worker, signal.SIGKILL)
    eventually(lambda: program.workers() not in ([], [worker]), 'there is a new worker')
    assert send_request(cloud)[0] == 200


def test_no_secret_in_process_list_or_log(agent, cloud):
    cloud.configure(debug='true')
    program = agent()
    send_request(cloud)
    with open(f'/proc/{program.pid}/cmdline') as file:
        assert 'a secret of tests' not in file.read()
    assert 'a secret of tests' not in program.text()


def test_executable_is_python():
    """A rootwrap filter of Grizzly checks /proc/<pid>/exe."""
    assert 'python' in os.path.basename(os.path.realpath(sys.executable))
