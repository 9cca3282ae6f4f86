# SPDX-License-Identifier: Apache-2.0
"""Run a program and return its output. Modules of ``netns`` run programs through it, so that tests can replace it."""

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
        """Run ``argv``, in the network namespace of that name if one is given, and return its standard output.

        The program inherits the descriptors ``pass_fds`` under their numbers. Raises NetnsError, with the program's
        standard error, when it cannot be started, does not end before the timeout, or its exit code is not 0.
        """


TIMEOUT_S = limits.PORT_IN_USE_TIMEOUT_S + 10.0
"""A proxy that is started retries a port in use for that long, and then reports the process that has it."""


class SubprocessRunner:
    """Runs real programs; one that takes longer than ``timeout_s`` seconds is killed."""

    def __init__(self, *, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s

    def __call__(
        self, argv: Sequence[str], *, stdin: str = '', namespace: str | None = None, pass_fds: Sequence[int] = ()
    ) -> str:
        """See Runner."""
        if namespace:
            # A child process starts in the namespace of the thread that starts it.
            return namespaces.run_in(namespace, lambda: self(argv, stdin=stdin, pass_fds=pass_fds))
        # Files and not pipes: a daemon that keeps its parent's standard error open would block the read.
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
    """PATH, and after it the directories of system programs."""
    return os.pathsep.join(dict.fromkeys([*os.environ.get('PATH', os.defpath).split(os.pathsep), *SBIN]))


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode('utf-8', 'replace')
