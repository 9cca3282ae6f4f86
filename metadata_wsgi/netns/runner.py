# SPDX-License-Identifier: Apache-2.0
"""Run a program and hear what it says.

The one door to other programs, so that a test can stand in it.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from typing import IO, Protocol

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.netns import namespaces

# Where iptables and ip live; missing from the PATH of some service managers and of su without "-".
SBIN = ('/usr/local/sbin', '/usr/sbin', '/sbin')


class Runner(Protocol):
    """Runs programs."""

    def __call__(
        self, argv: Sequence[str], *, stdin: str = '', namespace: str | None = None, hand: Sequence[int] = ()
    ) -> str:
        """Run ``argv``, in the network namespace of that name if one is given, and return its standard output.

        It inherits the descriptors ``hand``, under their numbers. Raises NetnsError, with what the program wrote on
        standard error, when it cannot be run, does not end in time, or ends with another exit code than 0.
        """


class SubprocessRunner:
    """Runs real programs; one that takes longer than ``timeout_s`` seconds is killed."""

    def __init__(self, *, timeout_s: float = 30.0) -> None:
        self._timeout_s = timeout_s

    def __call__(
        self, argv: Sequence[str], *, stdin: str = '', namespace: str | None = None, hand: Sequence[int] = ()
    ) -> str:
        """See Runner."""
        if namespace:
            # A child is born where the thread is that starts it.
            return namespaces.run_in(namespace, lambda: self(argv, stdin=stdin, hand=hand))
        # Files and not pipes: a daemon that keeps its parent's standard error open would keep us waiting.
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            try:
                done = subprocess.run(
                    argv,
                    input=stdin.encode(),
                    stdout=out,
                    stderr=err,
                    timeout=self._timeout_s,
                    env={**os.environ, 'PATH': search_path()},
                    check=False,
                    pass_fds=hand,
                )
            except subprocess.TimeoutExpired:
                raise NetnsError(f'{shlex.join(argv)}: no end after {self._timeout_s:g} s') from None
            except OSError as error:
                raise NetnsError(f'{shlex.join(argv)}: {error.strerror}') from error
            if done.returncode:
                words = ' '.join(_text(err).split()) or 'it said nothing'
                raise NetnsError(f'{shlex.join(argv)}: exit code {done.returncode}: {words}')
            return _text(out)


def search_path() -> str:
    """PATH, and after it the directories in which system programs live."""
    return os.pathsep.join(dict.fromkeys([*os.environ.get('PATH', os.defpath).split(os.pathsep), *SBIN]))


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode('utf-8', 'replace')
