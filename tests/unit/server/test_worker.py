# SPDX-License-Identifier: Apache-2.0
"""The worker's end; how it serves: tests/e2e."""

import os
import signal
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
