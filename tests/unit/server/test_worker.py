# SPDX-License-Identifier: Apache-2.0
"""The worker's end; how it serves: tests/e2e."""

import os
import signal
import subprocess
import sys
import types

import gevent
from gunicorn.config import Config

from metadata_wsgi import limits
from metadata_wsgi.server.worker import MetadataWorker, WorkerOptions


def test_graceful_stop_does_not_wait_for_the_next_notification_of_the_master(monkeypatch):
    monkeypatch.setattr(limits, 'WORKER_NOTIFY_S', 3600.0)
    app = types.SimpleNamespace(worker_options=WorkerOptions(), failure_memory=None)
    worker = MetadataWorker(0, os.getppid(), [], app, 30, Config(), None)
    worker.wsgi = app
    try:
        worker.prepare()
        gevent.spawn(worker.handle_exit, signal.SIGTERM, None)
        worker.run()
    finally:
        worker.tmp.close()
    assert not worker.alive


PATCH_WITHOUT_PLUG_INS = """
import importlib.metadata
from metadata_wsgi.server.worker import MetadataWorker

def entry_points(**which):
    raise AssertionError('searched the installed packages')

importlib.metadata.entry_points = entry_points
worker = MetadataWorker.__new__(MetadataWorker)
worker.sockets = []
worker.patch()
import socket
print(socket.socket.__module__)
"""


def test_gevent_patches_a_worker_without_a_search_for_plug_ins():
    """In a process of its own: the patch cannot be taken back."""
    argv = [sys.executable, '-W', 'ignore', '-c', PATCH_WITHOUT_PLUG_INS]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, done.stdout) == (0, '', 'gevent._socket3\n')


WITHOUT_STDERR = """
import gunicorn.config
from metadata_wsgi.server.worker import MetadataWorker
worker = MetadataWorker(1, 1, [], None, 1, gunicorn.config.Config(), None)
worker.PIPE = (0, -1)
worker.init_signals()
print('serves')
"""


def test_a_worker_without_standard_error_starts():
    """After ``2>&-``. Then no stack can be written when the worker hangs."""
    command = 'exec "$0" -W ignore -c "$1" 2>&-'
    done = subprocess.run(
        ['sh', '-c', command, sys.executable, WITHOUT_STDERR], stdout=subprocess.PIPE, text=True, check=False
    )
    assert done.stdout == 'serves\n'
