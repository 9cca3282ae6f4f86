# SPDX-License-Identifier: Apache-2.0
"""What the master loads; ``tests/e2e`` has whole programs."""

import errno
import importlib
import subprocess
import sys

import pytest

from metadata_wsgi.errors import ConfigError, MetadataError
from metadata_wsgi.server import master, preload


def make_server(load=lambda: None):
    return master.Server(load, [], settings=lambda: {'workers': 1}, name='test')


def test_the_check_loads_settings_and_application():
    def load():
        raise ConfigError('nova_metadata_port = x: not a number')

    make_server().check_config_in_child()
    with pytest.raises(MetadataError, match='nova_metadata_port = x: not a number'):
        make_server(load).check_config_in_child()


def test_the_modules_that_are_loaded_before_the_privileges_are_dropped_exist():
    """In the installed version of gevent; in another one a missing one is skipped."""
    for name in preload.PRELOAD_MODULES:
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


def test_an_identity_that_cannot_be_determined_does_not_end_the_master():
    """For lack of descriptors. The next call tries again."""
    is_full = False

    def identity():
        if is_full:
            raise OSError(errno.EMFILE, 'Too many open files')

    server = master.Server(lambda: None, [], settings=lambda: {'workers': 1}, name='test', identity=identity)
    is_full = True
    assert server.update_identity() is False
