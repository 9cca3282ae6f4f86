# SPDX-License-Identifier: Apache-2.0
"""The agent as a process: its socket, its signals, and that it is the same pipeline whoever serves it."""

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
from tests.e2e.conftest import UnixConnection, answers, eventually, request

GUEST = {'X-Forwarded-For': '10.1.1.2', 'X-Quantum-Router-ID': 'router-a'}
REQUESTS = [
    ('GET', '/openstack/latest/meta_data.json', GUEST, None),
    ('HEAD', '/openstack', GUEST, None),
    ('POST', '/openstack/2013-04-04/password', GUEST, b'secret' * 1000),
    ('GET', '/a%2fb//../x?q=%zz', {**GUEST, 'X-Quantum-Router-ID': 'router-b'}, None),
    ('GET', '/', {**GUEST, 'X-Forwarded-For': '10.1.1.77'}, None),
    ('GET', '/', {**GUEST, 'X-Quantum-Network-ID': 'network-c'}, None),
    ('GET', '/', {}, None),
]


def over_the_socket(path):
    return [request(UnixConnection(path), method, target, headers, body) for method, target, headers, body in REQUESTS]


def in_process(cloud):
    app = webtest.TestApp(paste_loader.load(str(SHIPPED), 'agent', {'config_file': str(cloud.conf_file)}))
    said = []
    for method, target, headers, body in REQUESTS:
        environ = {'RAW_URI': target}
        response = app.request(
            target, method=method, headers=headers, body=body or b'', environ=environ, expect_errors=True
        )
        kept = {k.lower(): v for k, v in response.headers.items() if k.lower() not in ('date', 'server')}
        said.append((response.status_int, kept, response.body))
    return said


def by_hand(programs, cloud, tmp_path, worker_class):
    """``gunicorn --paste etc/api-paste.ini``: the shipped file, its [DEFAULT] naming the configuration."""
    paste = tmp_path / 'api-paste.ini'
    paste.write_text(SHIPPED.read_text().replace('# config_file =', f'config_file = {cloud.conf_file}\n#'))
    path = tmp_path / 'by-hand'
    server = programs('gunicorn', '--paste', paste, '--bind', f'unix:{path}', '--worker-class', worker_class)
    eventually(lambda: server.process.poll() is not None or answers(path), 'gunicorn listens')
    assert server.process.poll() is None, server.text()
    return path


@pytest.mark.parametrize('worker_class', ['gevent', 'sync'])
def test_three_ways_to_serve_it_give_the_same_answers(agent, programs, cloud, tmp_path, worker_class):
    agent()
    from_the_agent = over_the_socket(cloud.socket)
    heard = [(seen['REQUEST_METHOD'], seen['RAW_URI'], seen['body']) for seen in cloud.nova.seen]
    assert [status for status, _, _ in from_the_agent] == [200, 200, 200, 200, 404, 400, 400]
    assert over_the_socket(by_hand(programs, cloud, tmp_path, worker_class)) == from_the_agent
    assert in_process(cloud) == from_the_agent
    assert [(seen['REQUEST_METHOD'], seen['RAW_URI'], seen['body']) for seen in cloud.nova.seen] == heard * 3


def test_the_socket_is_for_owner_and_group(agent, cloud):
    agent()
    found = os.stat(cloud.socket)
    group = identity.default_identity().gid if os.getuid() == 0 else os.getgid()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o660, os.getuid(), group)


def test_the_backlog_is_effective(agent, cloud):
    """Neutron's never was: it is set after listen()."""
    with open('/proc/sys/net/core/somaxconn') as file:
        most = int(file.read())
    cloud.configure(metadata_backlog=4096)
    agent()
    lines = subprocess.run(['ss', '-xlH'], capture_output=True, text=True, check=True).stdout.splitlines()
    (line,) = [line.split() for line in lines if str(cloud.socket) in line]
    assert int(line[3]) == min(4096, most)


def test_a_stale_socket_is_replaced(agent, cloud):
    first = agent()
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert cloud.socket.exists()
    agent()
    assert over_the_socket(cloud.socket)[0][0] == 200


def test_a_living_one_is_refused_with_a_sentence(agent, programs, cloud):
    agent()
    second = programs('quantum-metadata-agent', '--config-file', cloud.conf_file)
    assert second.wait() == 1
    assert second.text().splitlines()[-1] == (
        f'quantum-metadata-agent: metadata_proxy_socket = {cloud.socket}: another agent is running and listens there; '
        'stop it first, or name another path'
    )
    assert over_the_socket(cloud.socket)[0][0] == 200


def test_after_a_sigkill_of_the_master_it_starts_at_once(agent, cloud):
    """Its workers listen for up to a second more."""
    agent().kill(signal.SIGKILL)
    agent()
    assert over_the_socket(cloud.socket)[0][0] == 200


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
def test_what_cannot_work_stops_the_start_with_one_sentence(programs, cloud, options, words):
    cloud.configure(**options)
    program = programs('quantum-metadata-agent', '--config-file', cloud.conf_file)
    assert program.wait() == 1
    said = [line for line in program.text().splitlines() if line.startswith('quantum-metadata-agent: ')]
    assert len(said) == 1
    assert words in said[0]
    assert 'Traceback' not in program.text()


class Load:
    """Asks again and again from a few threads until it is stopped; ``failed`` has what went wrong."""

    def __init__(self, ask, threads=4):
        self.failed, self.done, self._stop = [], 0, threading.Event()
        self._ask = ask
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def _run(self):
        while not self._stop.is_set():
            try:
                status = self._ask()[0]
                if status != 200:
                    self.failed.append(status)
            except OSError as error:
                self.failed.append(error)
            self.done += 1

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        eventually(lambda: self.done > 20, 'requests are answered')
        return self

    def __exit__(self, *exc):
        self._stop.set()
        for thread in self._threads:
            thread.join(30)


def ask(cloud):
    return request(UnixConnection(cloud.socket), 'GET', '/openstack', GUEST)


def test_sighup_under_load_drops_nothing(agent, cloud):
    program = agent()
    with Load(lambda: ask(cloud)) as load:
        for _ in range(2):
            before, done = program.workers(), load.done
            program.kill(signal.SIGHUP)
            eventually(lambda before=before: not set(before) & set(program.workers()), 'the workers are new')
            eventually(lambda done=done: load.done > done + 20, 'requests are answered')
    assert load.failed == []
    assert 'Reloaded' in program.text()


def test_sighup_takes_new_values(agent, cloud):
    program = agent()
    cloud.configure(nova_metadata_host='127.0.0.1:1', answer_within=0.2)
    program.kill(signal.SIGHUP)
    eventually(lambda: ask(cloud)[0] == 503, 'the new value is in force')


def test_sighup_with_what_cannot_work_keeps_serving_and_says_so(agent, cloud, tmp_path):
    paste = tmp_path / 'api-paste.ini'
    paste.write_text(SHIPPED.read_text())
    cloud.configure(api_paste_config=paste)
    program = agent()
    workers = program.workers()
    paste.write_text(
        SHIPPED.read_text().replace('header_source instance signature', 'header_source signature instance')
    )
    program.kill(signal.SIGHUP)
    eventually(lambda: 'Not reloaded' in program.text(), 'it says so')
    assert 'put instance before signature' in program.text()
    assert ask(cloud)[0] == 200
    assert program.workers() == workers


def test_sigterm_drains(agent, cloud):
    """What is under way is finished, and kept connections that are idle delay nothing."""
    program = agent()
    idle = UnixConnection(cloud.socket)
    idle.request('GET', '/openstack', headers=GUEST)
    assert idle.getresponse().read()
    slow, answered = threading.Event(), []
    cloud.nova.before = lambda: (slow.set(), time.sleep(1.0))
    asking = threading.Thread(target=lambda: answered.append(ask(cloud)[0]))
    asking.start()
    assert slow.wait(10)
    program.kill(signal.SIGTERM)
    assert program.wait(9) == 0
    asking.join(10)
    assert answered == [200]
    assert not cloud.socket.exists()
    idle.close()


def test_a_worker_that_dies_is_replaced(agent, cloud):
    program = agent()
    (worker,) = program.workers()
    os.kill(worker, signal.SIGKILL)
    eventually(lambda: program.workers() not in ([], [worker]), 'there is a new worker')
    assert ask(cloud)[0] == 200


def test_no_secret_is_in_the_process_list_or_the_log(agent, cloud):
    cloud.configure(debug='true')
    program = agent()
    ask(cloud)
    with open(f'/proc/{program.pid}/cmdline') as file:
        assert 'a secret of tests' not in file.read()
    assert 'a secret of tests' not in program.text()


def test_it_is_started_by_python():
    """A rootwrap filter of Grizzly's looks at /proc/<pid>/exe."""
    assert 'python' in os.path.basename(os.path.realpath(sys.executable))
