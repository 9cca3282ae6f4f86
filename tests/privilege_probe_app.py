# SPDX-License-Identifier: Apache-2.0
"""A paste app that tries what an attacker with control of a worker could try, and responds with the outcomes."""

import ctypes
import json
import os
import resource
import signal
import socket
import subprocess
import threading

# Imported early: gevent.subprocess imports this module at its first use, when the worker may not read it any more.
import gevent.fileobject  # noqa: F401

LIBC = ctypes.CDLL(None, use_errno=True)
NEW_USER, NEW_NET = 0x10000000, 0x40000000


def outcome(attempt):
    """The result of ``attempt()``: 'done', or the text of the errno."""
    try:
        attempt()
    except OSError as error:
        return type(error).__name__ if error.errno is None else os.strerror(error.errno)
    return 'done'


def call(name, *args):
    def attempt():
        if getattr(LIBC, name)(*args) == -1:
            raise OSError(ctypes.get_errno(), name)

    return attempt


def setns(path):
    def attempt():
        with open(path) as namespace:
            call('setns', namespace.fileno(), NEW_NET)()

    return attempt


def attempts(namespace, secret_file):
    """Name of an action -> function that does it, or raises OSError if it is not permitted."""
    return {
        'enter a namespace': setns(namespace),
        'make a namespace': call('unshare', NEW_USER),
        'fork into a namespace': call('syscall', 56, NEW_USER | signal.SIGCHLD, 0, 0, 0, 0),
        'run a program': lambda: subprocess.run(['/bin/true'], check=True),
        'replace itself': lambda: os.execv('/bin/true', ['true']),
        'read a secret': lambda: open(secret_file).close(),
        'become root': lambda: os.setuid(0),
        'end the master': lambda: os.kill(os.getppid(), 0),
        'trace the master': call('ptrace', 16, os.getppid(), 0, 0),
        'see packets': lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close(),
        'mount': call('mount', b'none', b'/mnt', b'tmpfs', 0, None),
        'log in the kernel': call('klogctl', 10, 0, 0),
        'listen below 1024': lambda: socket.create_server(('127.0.0.1', 81)).close(),
        'open a socket': lambda: socket.socket().close(),
        'start a thread': lambda: threading.Thread(target=lambda: None).start(),
    }


def status():
    with open('/proc/self/status') as file:
        return dict(line.rstrip('\n').split(':\t', 1) for line in file if ':\t' in line)


def app_factory(global_conf, namespace, secret_file):
    with open(secret_file) as file:
        loaded = file.read()

    def app(environ, start_response):
        report = {
            'loaded': loaded,
            'core': resource.getrlimit(resource.RLIMIT_CORE),
            'dumpable': LIBC.prctl(3, 0, 0, 0, 0),
            'status': status(),
            'outcomes': {name: outcome(attempt) for name, attempt in attempts(namespace, secret_file).items()},
        }
        start_response('400 Probed', [('Content-Type', 'application/json')])
        return [json.dumps(report).encode()]

    app.REQUIRES = frozenset()
    return app
