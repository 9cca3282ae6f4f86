# SPDX-License-Identifier: Apache-2.0
"""Heartbeats and SIGUSR1; ``tests/e2e/test_master_signals.py`` sends the signals."""

import errno
import os
import signal
import socket
import subprocess
import tempfile
import time
from types import SimpleNamespace

import gunicorn.sock
import pytest
from gunicorn.errors import HaltServer
from gunicorn.workers.workertmp import WorkerTmp

from metadata_wsgi import limits
from metadata_wsgi.errors import ConfigError, MetadataError
from metadata_wsgi.net.sd_notify import Notifier
from metadata_wsgi.server import config_check, master, reexec
from metadata_wsgi.server.arbiter import Arbiter, has_fresh_heartbeat


@pytest.mark.parametrize(
    ('last_s', 'is_fresh'),
    [(100.0, True), (100.0 - limits.HEARTBEAT_FRESH_S, False), (time.time(), False)],
    ids=['now', 'old', 'none yet: the time of day'],
)
def test_fresh_heartbeat(last_s, is_fresh):
    assert has_fresh_heartbeat(last_s, 100.0) is is_fresh


def test_a_jump_of_the_clock_ends_no_worker():
    """gunicorn's heartbeat is in monotonic time; a heartbeat in wall-clock time would be old after a jump."""

    class Settings:
        umask, worker_tmp_dir, uid, gid = 0, None, -1, -1

    heartbeat = WorkerTmp(Settings())
    before_s = time.monotonic()
    heartbeat.notify()
    # The file system may store microseconds only.
    assert before_s - 0.001 <= heartbeat.last_update() <= time.monotonic() + 0.001
    heartbeat.close()


def test_a_second_reexec_before_new_workers_serve_passes_all_former_workers(monkeypatch):
    """Those that it did not pass would serve the old version for ever."""
    calls = []
    monkeypatch.setattr(reexec, 'execute_again', lambda *arguments: calls.append(arguments))
    notifier = SimpleNamespace(progress=lambda: None, environ={'NOTIFY_SOCKET': '/n'})
    app = SimpleNamespace(socket_name='s', notifier=notifier, former_workers=[11, 12])
    arbiter = SimpleNamespace(
        _is_stopping=False, app=app, LISTENERS=[SimpleNamespace(fileno=lambda: 5)], WORKERS={13: None},
        _can_start_installed_program=lambda: True,
    )  # fmt: skip
    Arbiter.handle_usr1(arbiter)
    assert calls == [({'s': 5}, [11, 12, 13], {'NOTIFY_SOCKET': '/n'})]


def test_reexec_is_skipped_if_a_stop_signal_has_arrived(make_arbiter, monkeypatch):
    """While the master was busy. The stop signal is queued in this program: the new program would not get it."""
    calls = []
    monkeypatch.setattr(reexec, 'execute_again', lambda *arguments: calls.append(arguments))
    arbiter = make_arbiter()
    arbiter.app.socket_name, arbiter.LISTENERS = 's', [SimpleNamespace(fileno=lambda: 5)]
    arbiter.signal(signal.SIGTERM, None)
    arbiter.handle_usr1()
    assert calls == []


class Heartbeat:
    """gunicorn's WorkerTmp: the monotonic time of the last heartbeat, or the time of day before the first one."""

    def __init__(self, last_s):
        self.last_s = last_s
        self.is_closed = False

    def last_update(self):
        return self.last_s

    def close(self):
        self.is_closed = True


class CountingArbiter(Arbiter):
    """Counts the workers that it would fork."""

    def __init__(self, app):
        super().__init__(app)
        self.WORKERS = {}
        self.pid = os.getpid()
        self.started = 0

    def spawn_worker(self):
        self.started += 1


@pytest.fixture
def make_arbiter():
    def make(workers=2):
        return CountingArbiter(master.Server(lambda: None, [], settings=lambda: {'workers': workers}, name='test'))

    return make


@pytest.mark.parametrize('graceful', [True, False])
def test_a_stop_waits_for_the_former_workers_of_a_reexec(make_arbiter, graceful):
    """When the master ends, systemd kills them with their requests in progress."""
    arbiter = make_arbiter()
    script = f'trap "sleep {0.5 if graceful else 600}; exit 7" TERM; echo ready; while :; do sleep 0.05; done'
    with subprocess.Popen(['sh', '-c', script], stdout=subprocess.PIPE) as former:
        former.stdout.readline()
        arbiter.app.former_workers = [former.pid]
        arbiter.stop(graceful)
        assert bool(reexec.running([former.pid])) is not graceful
        former.kill()
        assert former.wait(20) == (7 if graceful else -signal.SIGKILL)


ENDED = []


@pytest.fixture(autouse=True)
def reaps_only_ended_children(monkeypatch):
    """The arbiter reaps any child of its process, which here may be one of another test."""
    waitpid = os.waitpid

    def of_this_test(pid, options):
        if pid != -1:
            return waitpid(pid, options)
        if not ENDED:
            raise ChildProcessError(errno.ECHILD, 'No child processes')
        return waitpid(ENDED.pop(0), options)

    monkeypatch.setattr(os, 'waitpid', of_this_test)


def ended_child(status):
    """The pid of a child that has ended and was not reaped."""
    pid = os.fork()
    if not pid:
        os._exit(status)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    ENDED.append(pid)
    return pid


def add_worker(arbiter, pid, last_s):
    arbiter.worker_age += 1
    arbiter.WORKERS[pid] = SimpleNamespace(age=arbiter.worker_age, tmp=Heartbeat(last_s), pid=pid, aborted=False)
    return arbiter.WORKERS[pid]


@pytest.mark.parametrize('status', [Arbiter.WORKER_BOOT_ERROR, Arbiter.APP_LOAD_ERROR])
def test_a_worker_that_cannot_load_is_started_again_after_a_pause_if_another_one_serves(
    make_arbiter, status, monkeypatch
):
    monkeypatch.setattr(limits, 'WORKER_START_RETRY_S', 3600.0)
    arbiter = make_arbiter()
    serving = os.getpid()
    add_worker(arbiter, serving, time.monotonic())
    failed = [add_worker(arbiter, ended_child(status), time.time()) for _ in range(2)]
    arbiter.reap_workers()
    assert list(arbiter.WORKERS) == [serving]
    assert all(worker.tmp.is_closed for worker in failed)
    arbiter.manage_workers()
    assert arbiter.started == 0
    arbiter._next_start_s = time.monotonic()
    arbiter.manage_workers()
    assert arbiter.started == 1


def test_the_master_ends_if_its_first_worker_cannot_load(make_arbiter):
    arbiter = make_arbiter()
    add_worker(arbiter, ended_child(Arbiter.WORKER_BOOT_ERROR), time.time())
    with pytest.raises(HaltServer):
        arbiter.reap_workers()


def test_a_stop_goes_on_if_a_worker_cannot_load(make_arbiter):
    arbiter = make_arbiter()
    add_worker(arbiter, ended_child(Arbiter.WORKER_BOOT_ERROR), time.time())
    arbiter.stop()
    assert arbiter.WORKERS == {}


def test_options_that_become_invalid_after_the_check_of_a_reload_do_not_end_the_master():
    """The settings are those that the check has read."""
    is_invalid = False

    def settings():
        if is_invalid and os.getpid() == arbiter.pid:
            raise ConfigError('metadata_connections = none: not a number')
        return {'workers': 3 if is_invalid else 1}

    arbiter = CountingArbiter(master.Server(lambda: None, [], settings=settings, name='test'))
    is_invalid = True
    arbiter.reload()
    assert arbiter.num_workers == 3


@pytest.mark.filterwarnings('ignore:unclosed file:ResourceWarning')  # gunicorn's, of the worker that was not forked
def test_a_worker_that_cannot_be_forked_is_started_at_the_next_call(monkeypatch, caplog):
    """For lack of memory, processes or descriptors. The workers that run stay."""
    first = []
    server = master.Server(
        lambda: None, [], settings=lambda: {'workers': 1}, name='test', on_first_worker=lambda app: first.append(app)
    )
    arbiter = Arbiter(server)
    arbiter.WORKERS, arbiter.pid = {}, os.getpid()

    def fail():
        raise OSError(errno.EAGAIN, 'Resource temporarily unavailable')

    with monkeypatch.context() as no_memory:
        no_memory.setattr(os, 'fork', fail)
        arbiter.manage_workers()
    assert 'A worker cannot be started: [Errno 11] Resource temporarily unavailable' in caplog.text
    assert arbiter.WORKERS == {}
    monkeypatch.setattr(os, 'fork', lambda: 12345)
    arbiter.manage_workers()
    (worker,) = arbiter.WORKERS.values()
    # It is the first worker, which calls on_first_worker.
    monkeypatch.setattr(master.preload, 'tune_gc', lambda: None)
    monkeypatch.setattr(master.drop, 'drop', lambda identity: None)
    worker.wsgi = 'app'
    server._on_worker_loaded(worker)
    worker.tmp.close()
    assert first == ['app']


def test_the_umask_of_the_master_stays_if_a_worker_cannot_be_started(monkeypatch):
    """gunicorn sets a umask for the file of the heartbeat. Without descriptors or space for the file, it stays."""
    before = os.umask(0o027)
    try:
        arbiter = Arbiter(master.Server(lambda: None, [], settings=lambda: {'workers': 1}, name='test'))
        arbiter.WORKERS, arbiter.pid = {}, os.getpid()

        def fail(**arguments):
            raise OSError(errno.EMFILE, 'Too many open files')

        monkeypatch.setattr(tempfile, 'mkstemp', fail)
        arbiter.manage_workers()
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def test_a_failed_reexec_leaves_the_master_running(monkeypatch, caplog):
    def fail(*arguments):
        raise OSError(errno.ENOENT, 'No such file or directory')

    monkeypatch.setattr(reexec, 'execute_again', fail)
    notifier = SimpleNamespace(progress=lambda: None, environ={})
    app = SimpleNamespace(socket_name='s', notifier=notifier, former_workers=[])
    arbiter = SimpleNamespace(
        _is_stopping=False, app=app, LISTENERS=[SimpleNamespace(fileno=lambda: 5)], WORKERS={},
        _can_start_installed_program=lambda: True,
    )  # fmt: skip
    Arbiter.handle_usr1(arbiter)
    assert 'cannot be executed' in caplog.text


def test_a_stop_signal_during_the_check_of_the_installed_program_cancels_the_reexec(make_arbiter, monkeypatch, caplog):
    arbiter = make_arbiter()
    arbiter.app.socket_name = 's'
    started = []
    monkeypatch.setattr(reexec, 'execute_again', lambda *arguments: started.append(arguments))

    def check(check, is_cancelled):
        arbiter._is_stopping = True
        assert is_cancelled()
        raise MetadataError('the server is stopping')

    monkeypatch.setattr(config_check, 'run_in_child', check)
    arbiter.handle_usr1()
    assert (started, 'this one continues' in caplog.text) == ([], False)


def test_the_listeners_are_not_inherited_by_programs_that_the_master_starts(make_arbiter, monkeypatch):
    """A report that hangs would keep the socket open; each SIGUSR1 would leave one more descriptor of it."""
    arbiter = make_arbiter()
    listener = socket.create_server(('127.0.0.1', 0))
    arbiter.LISTENERS = [gunicorn.sock.TCPSocket(None, arbiter.cfg, arbiter.log, fd=listener.detach())]
    monkeypatch.setattr(arbiter, 'init_signals', lambda: None)
    arbiter.start()
    assert [sock.get_inheritable() for sock in arbiter.LISTENERS] == [False]
    arbiter.LISTENERS[0].close()


def test_a_worker_that_ends_during_the_check_of_a_reload_is_replaced_at_once(make_arbiter, monkeypatch):
    """The check may take a minute."""
    arbiter = make_arbiter(workers=1)

    def check(is_cancelled):
        add_worker(arbiter, ended_child(1), time.monotonic())
        assert not is_cancelled()
        assert (arbiter.started, arbiter.WORKERS) == (1, {})
        raise ConfigError('x = y')

    monkeypatch.setattr(arbiter.app, 'check_config_in_child', check)
    arbiter.reload()
    assert arbiter.started == 1


def test_the_watchdog_is_fed_while_a_former_worker_runs_and_no_new_worker_can_load(make_arbiter, monkeypatch):
    """After SIGUSR1. systemd would otherwise end the former workers too, and they serve."""
    sent = []
    arbiter = make_arbiter()
    monkeypatch.setattr(arbiter.app.notifier, 'progress', lambda: sent.append('WATCHDOG=1'))
    with subprocess.Popen(['sleep', '600']) as former:
        arbiter.app.former_workers = [former.pid]
        arbiter.manage_workers()
        assert sent == ['WATCHDOG=1']
        former.kill()
    arbiter.manage_workers()
    assert sent == ['WATCHDOG=1']


def test_a_worker_of_the_new_program_that_cannot_load_does_not_end_the_master_after_sigusr1(monkeypatch):
    with subprocess.Popen(['sleep', '600']) as former:
        monkeypatch.setenv(reexec.FORMER_WORKERS, str(former.pid))
        arbiter = CountingArbiter(master.Server(lambda: None, [], settings=lambda: {'workers': 1}, name='test'))
        add_worker(arbiter, ended_child(Arbiter.WORKER_BOOT_ERROR), time.time())
        arbiter.reap_workers()
        former.kill()
    assert arbiter.WORKERS == {}


def arbiter_whose_only_worker_ended(make_arbiter, watchdog_s):
    """And the worker in its place could not load."""
    arbiter = make_arbiter(workers=1)
    arbiter.app.notifier = Notifier(watchdog_s=watchdog_s)
    add_worker(arbiter, ended_child(1), time.monotonic())
    arbiter.reap_workers()
    add_worker(arbiter, ended_child(Arbiter.WORKER_BOOT_ERROR), time.time())
    return arbiter


def test_the_master_ends_if_no_worker_is_left_and_no_watchdog_would_end_it(make_arbiter):
    """Then the container is started again."""
    with pytest.raises(HaltServer):
        arbiter_whose_only_worker_ended(make_arbiter, watchdog_s=0).reap_workers()


def test_the_master_starts_another_worker_until_the_watchdog_ends_it(make_arbiter, caplog):
    arbiter = arbiter_whose_only_worker_ended(make_arbiter, watchdog_s=30)
    arbiter.reap_workers()
    assert 'A new worker could not load. Other workers: 0. Another one is started in 5 s' in caplog.text


def test_the_master_does_not_end_during_the_check_of_a_reload_if_no_worker_is_left(make_arbiter, monkeypatch):
    """The configuration may have been corrected. An exception would also leave the process of the check."""
    arbiter = arbiter_whose_only_worker_ended(make_arbiter, watchdog_s=0)
    monkeypatch.setattr(arbiter.app, 'check_config_in_child', lambda is_cancelled: {'workers': is_cancelled() + 1})
    arbiter.reload()
    assert (arbiter.started, arbiter.WORKERS) == (1, {})
