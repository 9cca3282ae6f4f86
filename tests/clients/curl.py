# SPDX-License-Identifier: Apache-2.0
"""Runs curl in a guest's namespace or on the host."""

from __future__ import annotations

import email
import subprocess
from dataclasses import dataclass
from email.message import Message


@dataclass(frozen=True)
class CurlResult:
    """Status (0: no response) and headers of the last response, and the seconds until it was complete."""

    status: int
    headers: Message
    seconds: float

    def header(self, name: str) -> str:
        """The header's value, '' if it is missing."""
        return str(self.headers.get(name, ''))


def curl(*words: str, namespace: str = '') -> CurlResult:
    """Run curl with the arguments ``words`` in the namespace; the body is discarded."""
    inside = ('ip', 'netns', 'exec', namespace) if namespace else ()
    options = ('--silent', '--noproxy', '*', '--max-time', '30', '--dump-header', '-', '--output', '/dev/null')
    done = subprocess.run(
        [*inside, 'curl', *options, '--write-out', '%{http_code} %{time_total}', *words],
        capture_output=True,
        text=True,
        check=False,
    )
    *heads, last = done.stdout.replace('\r\n', '\n').split('\n\n')
    status, seconds = last.split()
    return CurlResult(
        int(status), email.message_from_string(heads[-1].partition('\n')[2] if heads else ''), float(seconds)
    )
