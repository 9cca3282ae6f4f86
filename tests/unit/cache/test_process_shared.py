# SPDX-License-Identifier: Apache-2.0
import os

import pytest

from metadata_wsgi.cache.process_shared import BASE_PAUSE_S, MAX_PAUSE_S, SharedPause
from tests.fakes import FakeClock


def test_a_pause_doubles_with_each_failure_up_to_the_maximum_backoff():
    pause = SharedPause(FakeClock())
    assert [pause.fail() for _ in range(8)] == [5, 10, 20, 40, 80, 160, MAX_PAUSE_S, MAX_PAUSE_S]
    pause.reset()
    assert pause.remaining_s() == 0.0
    assert pause.fail() == BASE_PAUSE_S


def test_a_pause_ends():
    clock = FakeClock()
    pause = SharedPause(clock)
    pause.fail()
    assert pause.remaining_s() == pytest.approx(BASE_PAUSE_S)
    clock.now_s += BASE_PAUSE_S
    assert pause.remaining_s() == 0.0


def test_processes_that_were_forked_share_a_pause():
    pause = SharedPause(FakeClock())
    child = os.fork()
    if not child:
        pause.fail()
        os._exit(0)
    os.waitpid(child, 0)
    assert pause.remaining_s() == pytest.approx(BASE_PAUSE_S)
