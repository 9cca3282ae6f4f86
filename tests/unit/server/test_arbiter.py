# SPDX-License-Identifier: Apache-2.0
"""Heartbeats and SIGUSR1; ``tests/e2e/test_master_signals.py`` sends the signals."""

import time
from types import SimpleNamespace

import pytest
from gunicorn.workers.workertmp import WorkerTmp

from metadata_wsgi import limits
from metadata_wsgi.server import reexec
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
    arbiter = SimpleNamespace(app=app, LISTENERS=[SimpleNamespace(fileno=lambda: 5)], WORKERS={13: None})
    Arbiter.handle_usr1(arbiter)
    assert calls == [({'s': 5}, [11, 12, 13], {'NOTIFY_SOCKET': '/n'})]
