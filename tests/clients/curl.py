# SPDX-License-Identifier: Apache-2.0
"""curl, in a guest's namespace or on the host: what it saw, and how long it took."""

from __future__ import annotations

import email
import subprocess
from dataclasses import dataclass
from email.message import Message


@dataclass(frozen=True)
class Saw:
    """The last answer's status (0 without one) and headers, and seconds until it was complete."""

    status: int
    headers: Message
    seconds: float

    def header(self, name: str) -> str:
        """The header's value, '' where it is not."""
        return str(self.headers.get(name, ''))


def curl(*words: str, namespace: str = '') -> Saw:
    """Run curl with ``words`` in the namespace; the body is thrown away."""
    inside = ('ip', 'netns', 'exec', namespace) if namespace else ()
    told = ('--silent', '--noproxy', '*', '--max-time', '30', '--dump-header', '-', '--output', '/dev/null')
    done = subprocess.run(
        [*inside, 'curl', *told, '--write-out', '%{http_code} %{time_total}', *words],
        capture_output=True,
        text=True,
        check=False,
    )
    *heads, last = done.stdout.replace('\r\n', '\n').split('\n\n')
    status, seconds = last.split()
    return Saw(int(status), email.message_from_string(heads[-1].partition('\n')[2] if heads else ''), float(seconds))
