# SPDX-License-Identifier: Apache-2.0
"""Colour and a progress line, on a terminal only. A pipe, a file and the journal get plain text.

Colour is off with ``NO_COLOR`` in the environment (no-color.org) and with ``TERM=dumb``. The progress line is written
to standard error after two seconds, and removed at the end.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

RED, GREEN, YELLOW = '31', '32', '33'
PROGRESS_DELAY_S = 2.0
PROGRESS_INTERVAL_S = 0.2


def has_colour(stream: TextIO) -> bool:
    """Whether escape sequences may be written to ``stream``."""
    return stream.isatty() and not os.environ.get('NO_COLOR') and os.environ.get('TERM') != 'dumb'


def paint(text: str, colour: str, stream: TextIO) -> str:
    """``text`` in ``colour`` if ``stream`` has colours, else unchanged."""
    return f'\033[{colour}m{text}\033[0m' if has_colour(stream) else text


def printable(text: str) -> str:
    """``text`` in one line, with ``?`` in place of each control character, because a terminal would execute it."""
    return ''.join(letter if letter.isprintable() else '?' for letter in text)


class Progress:
    """Writes a line ``<what> <done> of <total>`` to ``stream``, by default standard error, while its block runs.

    Nothing is written if ``stream`` is not a terminal, or if the block ends within PROGRESS_DELAY_S. ``step`` may be
    called from any thread.
    """

    def __init__(
        self, what: str, total: int, *, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._what = what
        self._total = total
        self._stream = stream or sys.stderr
        self._clock = clock
        self._lock = threading.Lock()
        self._done = 0
        self._next_s = float('inf')
        self._is_shown = False

    def __enter__(self) -> Progress:
        if self._stream.isatty():
            self._next_s = self._clock() + PROGRESS_DELAY_S
        return self

    def step(self) -> None:
        """Count one more item as done, and update the line."""
        with self._lock:
            self._done += 1
            now_s = self._clock()
            if now_s >= self._next_s:
                self._next_s = now_s + PROGRESS_INTERVAL_S
                self._is_shown = True
                self._stream.write(f'\r{self._what} {self._done} of {self._total}\033[K')
                self._stream.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._is_shown:
            self._stream.write('\r\033[K')
            self._stream.flush()
