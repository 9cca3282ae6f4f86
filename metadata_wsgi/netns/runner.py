# SPDX-License-Identifier: Apache-2.0
"""Runs a program and returns its output. Modules of ``netns`` run programs with a Runner, so tests can replace it."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from typing import IO, Protocol

from metadata_wsgi import limits
from metadata_wsgi.errors import NetnsError
from metadata_wsgi.netns import namespaces

# iptables and ip are here. The PATH of some service managers, and of su without "-", does not have them.
SBIN = ('/usr/local/sbin', '/usr/sbin', '/sbin')


class Runner(Protocol):
    """Runs programs."""

    def __call__(
        self, argv: Sequence[str], *, stdin: str = '', namespace: str | None = None, pass_fds: Sequence[int] = ()
    ) -> str:
        """Run ``argv`` and return its standard output. With ``namespace``, run it in this network namespace.

        The program inherits the descriptors ``pass_fds`` with the same numbers. Raises NetnsError if the program cannot
        be started, does not end before the timeout, or exits with a code other than 0. The text of the error contains
        the program's standard error.
        """


TIMEOUT_S = limits.PORT_IN_USE_TIMEOUT_S + 10.0
"""Timeout of a program. It is longer than the time for which a new namespace proxy retries to bind a port in use."""


class SubprocessRunner:
    """Runs programs. A program that takes longer than ``timeout_s`` seconds is killed."""

    def __init__(self, *, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s

    def __call__(
        self, argv: Sequence[str], *, stdin: str = '', namespace: str | None = None, pass_fds: Sequence[int] = ()
    ) -> str:
        """See Runner."""
        if namespace:
            # A child process starts in the namespace of the thread that starts it.
            return namespaces.run_in(namespace, lambda: self(argv, stdin=stdin, pass_fds=pass_fds))
        # No pipes: if a daemon keeps the standard error of its parent open, the read of a pipe would block.
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            try:
                completed = subprocess.run(
                    argv,
                    input=stdin.encode(),
                    stdout=out,
                    stderr=err,
                    timeout=self._timeout_s,
                    env={**os.environ, 'PATH': search_path()},
                    check=False,
                    pass_fds=pass_fds,
                )
            except subprocess.TimeoutExpired:
                raise NetnsError(f'{shlex.join(argv)}: not finished after {self._timeout_s:g} s') from None
            except OSError as error:
                raise NetnsError(f'{shlex.join(argv)}: {error.strerror}') from error
            if completed.returncode:
                message = ' '.join(_text(err).split()) or 'no error message'
                raise NetnsError(f'{shlex.join(argv)}: exit code {completed.returncode}: {message}')
            return _text(out)


def search_path() -> str:
    """PATH, followed by the directories of system programs."""
    return os.pathsep.join(dict.fromkeys([*os.environ.get('PATH', os.defpath).split(os.pathsep), *SBIN]))


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode('utf-8', 'replace')
