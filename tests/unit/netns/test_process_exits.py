# SPDX-License-Identifier: Apache-2.0
"""With real processes: only the kernel knows when one has ended."""

import os
import select
import subprocess

import pytest

from metadata_wsgi.netns.process_exits import ProcessExits

LONG_MS = 300_000


@pytest.fixture
def start():
    """Starts a process that runs until it is killed."""
    started = []

    def start():
        started.append(subprocess.Popen(['sleep', '600']))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def exits():
    made = ProcessExits()
    yield made
    made.close()


def wait(exits):
    poll = select.poll()
    poll.register(exits.fileno(), select.POLLIN)
    assert poll.poll(LONG_MS)


def test_ended_process_is_taken_once_even_if_its_parent_has_not_waited_for_it(start, exits):
    one, other = start(), start()
    exits.watch('one', one.pid)
    exits.watch('other', other.pid)
    assert (exits.has_ended(), exits.take()) == (False, set())
    one.kill()
    wait(exits)
    assert (exits.has_ended(), exits.take(), exits.take(), exits.has_ended()) == (True, {'one'}, set(), False)
    other.kill()
    wait(exits)
    assert exits.take() == {'other'}


def test_replaced_and_forgotten_process_is_not_reported(start, exits):
    replaced, forgotten, present = start(), start(), start()
    exits.watch('one', replaced.pid)
    exits.watch('one', present.pid)
    exits.watch('other', forgotten.pid)
    exits.forget('other')
    exits.forget('never watched')
    for process in (replaced, forgotten):
        process.kill()
        process.wait()
    assert exits.take() == set()
    present.kill()
    wait(exits)
    assert exits.take() == {'one'}


def test_process_that_has_ended_before_is_not_watched(start, exits):
    process = start()
    process.kill()
    process.wait()
    exits.watch('one', process.pid)
    assert exits.take() == set()


def test_descriptors_are_limited_and_closed(start, exits):
    before = len(os.listdir('/proc/self/fd'))
    limited = ProcessExits(max_processes=1)
    one, other = start(), start()
    limited.watch('one', one.pid)
    limited.watch('one', one.pid)
    limited.watch('other', other.pid)
    other.kill()
    one.kill()
    wait(limited)
    assert limited.take() == {'one'}
    limited.watch('more', start().pid)
    limited.close()
    assert len(os.listdir('/proc/self/fd')) == before
