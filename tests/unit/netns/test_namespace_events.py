# SPDX-License-Identifier: Apache-2.0
"""A wait ends with the next change of the directory. The timeouts are so long that only an event can end the test."""

import os
import threading

import pytest

from metadata_wsgi.netns.namespace_events import NamespaceEvents

LONG_S = 300.0


@pytest.fixture
def directory(tmp_path):
    return tmp_path / 'netns'


@pytest.fixture
def events(directory):
    with NamespaceEvents(str(directory)) as made:
        yield made


def test_wait_ends_when_a_name_is_added_or_removed(directory, events):
    directory.mkdir()
    events.wait(0)
    (directory / 'qrouter-1').touch()
    events.wait(LONG_S)
    (directory / 'qrouter-1').unlink()
    events.wait(LONG_S)


def test_wait_ends_for_a_name_that_was_added_before_it(directory):
    """watch lists the directory before it waits for the first time."""
    directory.mkdir()
    with NamespaceEvents(str(directory)) as events:
        (directory / 'qrouter-1').touch()
        events.wait(LONG_S)


def test_wait_ends_for_a_name_in_a_directory_that_was_created_before_it(directory, events):
    directory.mkdir()
    (directory / 'qrouter-1').touch()
    events.wait(LONG_S)
    directory.rename(directory.with_name('former'))
    directory.mkdir()
    (directory / 'qrouter-2').touch()
    events.wait(LONG_S)


def test_wait_ends_for_a_directory_that_is_created_later(directory, events):
    events.wait(0)
    directory.mkdir()
    events.wait(0)
    (directory / 'qrouter-1').touch()
    events.wait(LONG_S)


def test_wake_ends_the_next_wait_and_a_wait_in_another_thread(directory, events):
    directory.mkdir()
    events.wait(0)
    events.wake()
    events.wait(LONG_S)
    waiting = threading.Thread(target=events.wait, args=(LONG_S,))
    waiting.start()
    events.wake()
    waiting.join()


def test_wait_without_an_event_ends_after_its_timeout(directory, events):
    directory.mkdir()
    events.wait(0)
    (directory / 'qrouter-1').touch()
    events.wait(LONG_S)
    events.wait(0.01)


def test_wait_ends_when_the_other_descriptor_is_readable(directory, events):
    directory.mkdir()
    events.wait(0)
    reader, writer = os.pipe()
    try:
        os.write(writer, b'\0')
        events.wait(LONG_S, reader)
    finally:
        os.close(reader)
        os.close(writer)


def test_wake_after_the_end_does_nothing(tmp_path):
    """A second SIGTERM may arrive while the program ends. Another file may have the descriptor's number then."""
    with NamespaceEvents(str(tmp_path)) as events:
        pass
    reader, writer = os.pipe2(os.O_NONBLOCK)
    try:
        events.wake()
        with pytest.raises(BlockingIOError):
            os.read(reader, 1)
    finally:
        os.close(reader)
        os.close(writer)


def test_wake_while_the_pipe_is_closed_does_nothing(tmp_path, monkeypatch):
    """A second SIGTERM may arrive between the closes of the two ends."""
    close = os.close
    with NamespaceEvents(str(tmp_path)) as events:

        def close_and_wake(descriptor):
            close(descriptor)
            events.wake()

        monkeypatch.setattr(os, 'close', close_and_wake)
    monkeypatch.undo()
    events.wake()
