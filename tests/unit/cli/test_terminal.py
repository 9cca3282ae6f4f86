# SPDX-License-Identifier: Apache-2.0
"""Colour and progress on a terminal only."""

import io

import pytest

from metadata_wsgi.cli import terminal


class FakeTerminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.delenv('NO_COLOR', raising=False)
    monkeypatch.setenv('TERM', 'xterm')


def test_colour_on_a_terminal_only():
    assert terminal.paint('x', terminal.RED, FakeTerminal()) == '\033[31mx\033[0m'
    assert terminal.paint('x', terminal.RED, io.StringIO()) == 'x'


@pytest.mark.parametrize(('name', 'value'), [('NO_COLOR', '1'), ('TERM', 'dumb')])
def test_no_colour_with_no_color_or_a_dumb_terminal(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert terminal.paint('x', terminal.RED, FakeTerminal()) == 'x'


def test_an_empty_no_color_counts_as_unset(monkeypatch):
    monkeypatch.setenv('NO_COLOR', '')
    assert terminal.has_colour(FakeTerminal())


def progress(stream, seconds):
    """What is written when three steps end at these times; the block begins at 0."""
    times = iter([0.0, *seconds])
    with terminal.Progress('Routers:', 3, stream=stream, clock=lambda: next(times)) as shown:
        for _ in seconds:
            shown.step()
    return stream.getvalue()


def test_progress_appears_after_two_seconds_and_is_removed_at_the_end():
    assert progress(FakeTerminal(), [1.0, 2.0, 2.5]) == ('\rRouters: 2 of 3\033[K\rRouters: 3 of 3\033[K\r\033[K')


def test_progress_is_not_written_more_often_than_a_person_can_read():
    assert progress(FakeTerminal(), [2.0, 2.1, 2.15]).count('Routers') == 1


def test_no_progress_for_a_short_operation():
    assert progress(FakeTerminal(), [0.1, 0.2, 1.9]) == ''


def test_no_progress_without_a_terminal():
    assert progress(io.StringIO(), [1.0, 2.0, 9.0]) == ''


def test_a_control_character_is_not_printable():
    assert terminal.printable('a\033[2Jb\nc\u202ed\xa0é') == 'a?[2Jb?c?d?é'
