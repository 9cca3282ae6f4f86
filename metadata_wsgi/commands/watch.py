# SPDX-License-Identifier: Apache-2.0
"""``metadata-wsgi watch``: attach what appears on this host, detach what disappears; for clouds without an L3 agent.

Looks every ``--interval`` seconds which namespaces there are. A new ``qrouter-<id>`` or ``qdhcp-<id>`` is attached, one
that was made anew under its old name too, and what belonged to one that is gone is removed. Every minute everything is
attached again, which changes nothing where it is right, and repairs what somebody else removed.

What cannot be attached yet (a DHCP namespace without its interface) is tried again each time, and said once for
each reason. Ending it (SIGTERM) detaches nothing: the next one adopts what is there. Options of ``attach`` stand behind
``--``. It needs root. Do not run it beside an L3 agent that attaches by itself: both would be right, and neither alone.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from metadata_wsgi import config, paths
from metadata_wsgi.commands import attach
from metadata_wsgi.errors import PlumbingError
from metadata_wsgi.plumbing import attached, netns
from metadata_wsgi.plumbing.iptables import Iptables
from metadata_wsgi.plumbing.run import SubprocessRunner

LOG = logging.getLogger(__name__)

KINDS = {'qrouter-': 'router', 'qdhcp-': 'network'}
AGAIN_S = 60.0

_NAME = re.compile(r'(qrouter-|qdhcp-)([A-Za-z0-9][A-Za-z0-9_-]{3,63})')

Place = tuple[str, str]
"""(kind, id): ``router`` or ``network``."""


class Attaching(Protocol):
    """What is done; each returns a complaint, '' if there is none."""

    def attach(self, place: Place) -> str:
        """Attach it, if it is not."""

    def detach(self, place: Place) -> str:
        """Detach it, if it is."""


class Watching:
    """``look`` gives the namespaces that are there, by place, and what identifies each: another is another one."""

    def __init__(
        self,
        look: Callable[[], Mapping[Place, object]],
        attaching: Attaching,
        *,
        again_s: float = AGAIN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look = look
        self._attaching = attaching
        self._again_s = again_s
        self._clock = clock
        self._attached: dict[Place, object] = {}
        self._gone: set[Place] = set()
        self._said: dict[Place, str] = {}
        self._all_again_at_s = clock() + again_s

    def begin(self, leftovers: Iterable[Place]) -> None:
        """Remove what belongs to namespaces that were gone before; then as always."""
        self._gone.update(leftovers)
        self.once()

    def once(self) -> None:
        """Look, and do what is to be done."""
        there = self._look()
        if self._clock() >= self._all_again_at_s:
            self._all_again_at_s = self._clock() + self._again_s
            self._gone.update(place for place in self._attached if place not in there)
            self._attached = {}
        self._gone.update(place for place in self._attached if place not in there)
        for place in sorted(self._gone):
            self._attached.pop(place, None)
            if place in there or self._did(place, 'detached', self._attaching.detach):
                self._gone.discard(place)
                self._said.pop(place, None)
        for place in sorted(there):
            if self._attached.get(place) != there[place] and self._did(place, 'attached', self._attaching.attach):
                self._attached[place] = there[place]

    def _did(self, place: Place, done: str, act: Callable[[Place], str]) -> bool:
        complaint = act(place)
        if self._said.get(place) != (complaint or done):
            self._said[place] = complaint or done
            LOG.log(logging.WARNING if complaint else logging.INFO, '%s %s: %s', *place, complaint or done)
        return not complaint


def namespaces(only: str | None) -> dict[Place, object]:
    """The namespaces of routers and networks (or ``only`` of one of the two), each with its inode."""
    found: dict[Place, object] = {}
    for name in netns.names():
        match = _NAME.fullmatch(name)
        if match and only in (None, KINDS[match[1]]):
            with contextlib.suppress(FileNotFoundError):
                found[KINDS[match[1]], match[2]] = os.stat(netns.path(name)).st_ino
    return found


class Verbs:
    """Attaches as the verbs ``attach`` and ``detach`` do, whatever options they have."""

    def __init__(self, everywhere: list[str], attach_options: list[str]) -> None:
        self._parser = argparse.ArgumentParser(prog=attach.PROGRAM, allow_abbrev=False)
        attach.add_verbs(self._parser.add_subparsers(required=True))
        self._everywhere = everywhere
        self._attach_options = attach_options
        # Ends with 2 here and now if an option is wrong.
        self._parser.parse_args(self._argv('attach', ('router', 'some-id')))

    def attach(self, place: Place) -> str:
        """``metadata-wsgi attach``; it does not wait for IPv6, which the next time finds ready."""
        return self._run(self._argv('attach', place))

    def detach(self, place: Place) -> str:
        """``metadata-wsgi detach``."""
        return self._run(self._argv('detach', place))

    def _argv(self, verb: str, place: Place) -> list[str]:
        more = ['--no-wait', *self._attach_options] if verb == 'attach' else []
        return [verb, f'--{place[0]}-id={place[1]}', *self._everywhere, *more]

    def _run(self, argv: list[str]) -> str:
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            args = self._parser.parse_args(argv)
            code: int = args.run(args)
        text = said.getvalue().strip().removeprefix(f'{attach.PROGRAM}: ')
        return (text or f'{argv[0]} ended with {code}') if code else ''


def add_verb(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    parser = subparsers.add_parser('watch', help='attach namespaces that appear, detach those that go; needs root')
    parser.add_argument('--only', choices=sorted(KINDS.values()), help='only routers, or only networks (default: both)')
    parser.add_argument(
        '--interval', type=_seconds, default=2.0, help='seconds from one look to the next (default: %(default)s)'
    )
    parser.add_argument('--config-file', action='append', default=[], help="the agent's files, for state_path")
    parser.add_argument('--state-path', help='directory of pid files and socket')
    parser.add_argument('attach_options', nargs='*', metavar='-- OPTION', help='options of attach, behind --')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Watch until SIGTERM or SIGINT."""
    if os.geteuid() != 0:
        raise PlumbingError('namespaces can only be reached by root; run it with sudo')
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(process)d %(levelname)s %(name)s %(message)s')
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    everywhere = [f'--config-file={file}' for file in args.config_file]
    if args.state_path:
        everywhere.append(f'--state-path={args.state_path}')
    watching = Watching(lambda: namespaces(args.only), Verbs(everywhere, args.attach_options))
    watching.begin(_leftovers(args))
    while not stop.wait(args.interval):
        watching.once()
    return 0


def _leftovers(args: argparse.Namespace) -> list[Place]:
    state_path = args.state_path or config.load({'config_file': ','.join(args.config_file)}, paths.OPTS).state_path
    found = attached.attached(Iptables(SubprocessRunner()), state_path=os.path.abspath(state_path))
    return [(one.kind, one.uuid) for one in found if one.namespace is None and args.only in (None, one.kind)]


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f'{text!r} is no number of seconds from 0.1 to 3600')
    return seconds
