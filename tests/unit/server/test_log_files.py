# SPDX-License-Identifier: Apache-2.0
"""The log files of master and workers."""

import logging
import logging.handlers

import pytest

from metadata_wsgi.errors import ConfigError
from metadata_wsgi.server import log_files

from .test_master import make_server


@pytest.fixture
def root_handler():
    """Adds a handler to the root logger for the test."""
    added = []

    def add(handler):
        logging.getLogger().addHandler(handler)
        added.append(handler)
        return handler

    yield add
    for handler in added:
        logging.getLogger().removeHandler(handler)
        handler.close()


@pytest.mark.parametrize('kind', [logging.handlers.RotatingFileHandler, logging.handlers.TimedRotatingFileHandler])
def test_a_log_handler_that_rotates_its_file_is_refused(kind, root_handler, tmp_path):
    root_handler(kind(tmp_path / 'agent.log'))
    with pytest.raises(ConfigError, match=r'log_rotation_type: .*agent\.log.*logrotate and then send SIGHUP'):
        make_server()


def test_a_rotated_log_file_is_reopened_for_new_workers(root_handler, tmp_path):
    """As at SIGHUP; the lines of the new workers go to the new file, which they could not open."""
    path = tmp_path / 'agent.log'
    root_handler(log_files.LogFile(path))
    path.rename(tmp_path / 'agent.log.1')
    log_files.reopen()
    # The handlers of a worker.
    before = list(logging.getLogger().handlers)
    try:
        log_files.keep_open()
        path.chmod(0)
        logging.getLogger().warning('of the worker')
    finally:
        logging.getLogger().handlers[:] = before
    assert (path.read_text(), (tmp_path / 'agent.log.1').read_text()) == ('of the worker\n', '')


def test_a_log_file_that_cannot_be_opened_after_a_rotation_is_written_on(root_handler, tmp_path):
    """Then again the new one, when it can be opened."""
    directory = tmp_path / 'log'
    directory.mkdir()
    path = directory / 'agent.log'
    root_handler(logging.handlers.WatchedFileHandler(path))
    before = list(logging.getLogger().handlers)
    try:
        log_files.watch()
        moved = directory.rename(tmp_path / 'moved') / 'agent.log'
        log_files.reopen()
        logging.getLogger().warning('to the former file')
        directory.mkdir()
        logging.getLogger().warning('to the new file')
    finally:
        for handler in set(logging.getLogger().handlers) - set(before):
            handler.close()
        logging.getLogger().handlers[:] = before
    warning, line = moved.read_text().splitlines()
    assert warning.startswith('The log file cannot be opened again, the former one is written: [Errno 2]')
    assert line == 'to the former file'
    assert path.read_text() == 'to the new file\n'


def test_a_full_disk_at_a_rotation_does_not_raise(tmp_path, monkeypatch):
    """close() writes what is left in the buffer of the former file. An error there would end the master."""
    monkeypatch.setattr(logging, 'raiseExceptions', False)
    path = tmp_path / 'agent.log'
    path.symlink_to('/dev/full')
    handler = log_files.LogFile(path)
    handler.handle(logging.makeLogRecord({'msg': 'lost'}))
    path.unlink()
    handler.handle(logging.makeLogRecord({'msg': 'to the new file'}))
    handler.close()
    assert path.read_text() == 'to the new file\n'


def test_a_full_disk_does_not_prevent_the_start(monkeypatch):
    monkeypatch.setattr(logging, 'raiseExceptions', False)
    full = logging.handlers.WatchedFileHandler('/dev/full')
    full.handle(logging.makeLogRecord({'msg': 'lost'}))
    before = list(logging.getLogger().handlers)
    logging.getLogger().addHandler(full)
    try:
        log_files.watch()
        (new,) = set(logging.getLogger().handlers) - {*before, full}
        new.close()
    finally:
        logging.getLogger().handlers[:] = before
