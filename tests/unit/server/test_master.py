# SPDX-License-Identifier: Apache-2.0
"""The master: check of the configuration, log files, options; ``tests/e2e`` has whole programs."""

import importlib
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from gunicorn.workers.workertmp import WorkerTmp
from oslo_config import cfg

from metadata_wsgi import limits
from metadata_wsgi.errors import ConfigError, MetadataError
from metadata_wsgi.server import master, options


def make_server(load=lambda: None, **kwargs):
    return master.Server(load, [], settings=lambda: {'workers': 1}, name='test', **kwargs)


def test_an_application_that_loads_passes_the_check():
    make_server().check_config_in_child()


def test_the_message_of_a_failed_check_is_that_of_the_child():
    def load():
        raise ConfigError('nova_metadata_port = x: not a number')

    with pytest.raises(MetadataError, match='nova_metadata_port = x: not a number'):
        make_server(load).check_config_in_child()


def test_a_timeout_ends_a_check_whose_load_hangs(monkeypatch):
    monkeypatch.setattr(limits, 'CONFIG_CHECK_TIMEOUT_S', 0.2)
    with pytest.raises(MetadataError, match='did not load within'):
        make_server(lambda: time.sleep(600)).check_config_in_child()


def test_a_stop_of_the_server_cancels_a_check_whose_load_hangs():
    with pytest.raises(MetadataError, match='the server is stopping'):
        make_server(lambda: time.sleep(600)).check_config_in_child(is_cancelled=lambda: True)


def test_zero_workers_are_the_default_and_logged_once(caplog):
    caplog.set_level('INFO')
    master._log_zero_workers.cache_clear()
    conf = cfg.ConfigOpts()
    conf.register_opts(options.OPTS)
    conf(['--config-file', '/dev/null'], project='test')
    conf.set_override('metadata_workers', 0)
    assert [master.worker_count(number) for number in (conf.metadata_workers, 0, None, 3)] == [
        *[master.default_workers()] * 3, 3
    ]  # fmt: skip
    assert [record.getMessage() for record in caplog.records] == [
        f'metadata_workers = 0 means the default here: {master.default_workers()}'
    ]


def test_the_modules_that_are_loaded_before_the_privileges_are_dropped_exist():
    """In the installed version of gevent; in another one a missing one is skipped."""
    for name in master.PRELOAD_MODULES:
        importlib.import_module(name)


def test_the_master_imports_no_module_that_keeps_a_function_gevent_replaces():
    """The master is not patched by gevent and its workers are forked from it.

    A default argument ``time.sleep`` of a module that the master imports would be the blocking one in the workers.
    """
    code = """
import inspect, select, socket, sys, threading, time
import metadata_wsgi.cli.agent, metadata_wsgi.cli.namespace_proxy
blocking = {id(f): f for f in (time.sleep, select.select, select.poll, socket.socket, socket.create_connection,
                               socket.getaddrinfo, threading.Thread, threading.Lock)}
for name, module in sorted(sys.modules.items()):
    if not name.startswith('metadata_wsgi'):
        continue
    functions = [f for f in vars(module).values() if inspect.isfunction(f)]
    for kind in filter(inspect.isclass, list(vars(module).values())):
        functions += filter(inspect.isfunction, vars(kind).values())
    for function in functions:
        for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            if id(default) in blocking and function.__module__.startswith('metadata_wsgi'):
                print(f'{function.__module__}.{function.__qualname__}')
for library in ('requests', 'urllib3', 'keystoneauth1', 'dogpile'):
    if library in sys.modules:
        print(f'{library} is imported')
"""
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, check=True)
    # These two are called in the master only.
    master_only = {'metadata_wsgi.net.listeners.unix_listener', 'metadata_wsgi.net.listeners.tcp_listener'}
    assert set(done.stdout.split('\n')) <= {'', *master_only}


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
    monkeypatch.setattr(master.reexec, 'execute_again', lambda *arguments: calls.append(arguments))
    notifier = SimpleNamespace(progress=lambda: None, environ={'NOTIFY_SOCKET': '/n'})
    app = SimpleNamespace(socket_name='s', notifier=notifier, former_workers=[11, 12])
    arbiter = SimpleNamespace(app=app, LISTENERS=[SimpleNamespace(fileno=lambda: 5)], WORKERS={13: None})
    master._Arbiter.handle_usr1(arbiter)
    assert calls == [({'s': 5}, [11, 12, 13], {'NOTIFY_SOCKET': '/n'})]
