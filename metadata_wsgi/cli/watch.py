# SPDX-License-Identifier: Apache-2.0
"""``metadata-wsgi watch``: attach what appears on this host, detach what disappears; for clouds without an L3 agent.

Looks every ``--interval`` seconds which namespaces there are. A new ``qrouter-<id>`` or ``qdhcp-<id>`` is attached, one
that was made anew under its old name too, and what belonged to one that is gone is removed. In the modes ``shared`` and
``one_hop`` it asks the keeper as often: where the keeper has no socket of a router any more, it is attached again.
Every minute (``--again``) everything is attached again, which changes nothing where it is right, and repairs what
somebody else removed. What it repairs it says.

Who serves a router is what ``-- --mode`` says. Without it a router keeps the mode in which it was last seen, and a new
one gets a process of its own; a keeper that is away is waited for, not replaced by processes.

What cannot be attached yet (a DHCP namespace without its interface) is tried again each time, and said once for
each reason. Ending it (SIGTERM) detaches nothing: the next one adopts what is there. Options of ``attach`` stand behind
``--``. It needs root. Do not run it beside an L3 agent that attaches by itself: both would be right, and neither alone.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Protocol

from metadata_wsgi.cli import attach
from metadata_wsgi.cli.reconciler import AGAIN_S, Place, Watching
from metadata_wsgi.config import config_files, state_paths
from metadata_wsgi.errors import NetnsError
from metadata_wsgi.keeper.attachments_client import AttachmentsClient
from metadata_wsgi.netns import attachment_status, lock, namespaces, proxy_process
from metadata_wsgi.netns import target as attachable
from metadata_wsgi.netns.target import Kept

LOG = logging.getLogger(__name__)

KINDS = {'qrouter-': 'router', 'qdhcp-': 'network'}

_NAME = re.compile(r'(qrouter-|qdhcp-)([A-Za-z0-9][A-Za-z0-9_-]{3,63})')


def watched_namespaces(only: str | None) -> dict[Place, object]:
    """The namespaces of routers and networks (or ``only`` of one of the two), each with its inode."""
    found: dict[Place, object] = {}
    for name in namespaces.names():
        match = _NAME.fullmatch(name)
        if match and only in (None, KINDS[match[1]]):
            with contextlib.suppress(FileNotFoundError):
                found[KINDS[match[1]], match[2]] = os.stat(namespaces.path(name)).st_ino
    return found


class Keeping(Protocol):
    """The keeper; :class:`metadata_wsgi.keeper.attachments_client.AttachmentsClient`. Raises NetnsError."""

    def kept(self) -> list[Kept]:
        """All that is kept."""

    def workers(self) -> dict[str, int]:
        """How many workers follow, by mode."""


class Verbs:
    """Attaches as the verbs ``attach`` and ``detach`` do, whatever options they have."""

    def __init__(self, everywhere: list[str], attach_options: list[str], *, keeping: Keeping | None = None) -> None:
        parser = argparse.ArgumentParser(prog=attach.PROGRAM, allow_abbrev=False)
        attach.add_verbs(parser.add_subparsers(required=True))
        # Ends with 2 here and now if an option is wrong. The id is that of nobody.
        common = ['--router-id=any-id', *everywhere]
        self._attach_args = parser.parse_args(['attach', *common, *attach_options])
        self._detach_args = parser.parse_args(['detach', *common])
        # Likewise a mark that marks nothing.
        attach.Attaching(self._attach_args, {}, count=attach.MANY)
        self._state_path = attach.state_path(self._attach_args)
        self._keeping = keeping or AttachmentsClient(self._state_path)
        self._modes: dict[str, str] = {}
        """Of the ids that were seen in the keeper's hands."""
        self._away = ''
        self._unserved: set[str] = set()

    def held(self) -> Set[Place] | None:
        """See ``watching.Attaching``."""
        try:
            kept = self._keeping.kept()
        except NetnsError as error:
            self._away = str(error)
            return None
        self._away = ''
        self._modes.update((one.place.uuid, one.mode) for one in kept)
        return {(one.place.kind, one.place.uuid) for one in kept}

    def attach(self, places: Sequence[Place]) -> Mapping[Place, str]:
        """``metadata-wsgi attach``; it does not wait for IPv6, which the next time finds ready."""
        with lock.alone(self._state_path):
            return self._attach(places)

    def _attach(self, places: Sequence[Place]) -> Mapping[Place, str]:
        held = self.held()
        complaints = {}
        for place in places:
            if self._has_process(place[1]):
                if place not in (held or ()):
                    self._modes.pop(place[1], None)
            elif held is None and not self._attach_args.mode and place[1] not in self._modes:
                # In what mode it is nobody knows: a process would want the port that a worker may have.
                complaints[place] = self._away
        tried = [place for place in places if place not in complaints]
        attaching = attach.Attaching(self._attach_args, self._modes, count=len(tried))
        complaints |= _complaints(tried, attaching.attach)
        self._warn_of_nobody({attaching.mode(attachable.Place.of(*place)) for place in tried})
        return complaints

    def detach(self, places: Sequence[Place]) -> Mapping[Place, str]:
        """``metadata-wsgi detach``."""
        with lock.alone(self._state_path):
            complaints = _complaints(places, attach.detaching(self._detach_args, count=len(places)))
        for _, uuid in places:
            self._modes.pop(uuid, None)
        return complaints

    def _has_process(self, uuid: str) -> bool:
        return proxy_process.active(state_paths.pid_file(self._state_path, uuid), uuid) is not None

    def _warn_of_nobody(self, modes: set[str]) -> None:
        """Once, until somebody serves."""
        try:
            unserved = modes - {attachable.PROCESS} - set(self._keeping.workers())
        except NetnsError:
            return
        for mode in sorted(unserved - self._unserved):
            LOG.warning('%s', attachable.NOBODY_SERVES[mode])
        self._unserved = unserved


def _complaints(places: Sequence[Place], act: Callable[[attachable.Place], str]) -> dict[Place, str]:
    outcomes = attach.each([attachable.Place.of(*place) for place in places], act)
    return {place: error for place, (_, error) in zip(places, outcomes, strict=True) if error}


def add_verb(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    parser = subparsers.add_parser('watch', help='attach namespaces that appear, detach those that go; needs root')
    parser.add_argument('--only', choices=sorted(KINDS.values()), help='only routers, or only networks (default: both)')
    parser.add_argument(
        '--interval', type=_seconds, default=2.0, help='seconds from one look to the next (default: %(default)s)'
    )
    parser.add_argument(
        '--again', type=_seconds, default=AGAIN_S, help='... from one repair of all to the next (default: %(default)s)'
    )
    parser.add_argument('--config-file', action='append', default=[], help="the agent's files, for state_path")
    parser.add_argument('--state-path', help='directory of pid files and socket')
    parser.add_argument('attach_options', nargs='*', metavar='-- OPTION', help='options of attach, behind --')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Watch until SIGTERM or SIGINT."""
    if os.geteuid() != 0:
        raise NetnsError('namespaces can only be reached by root; run it with sudo')
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(process)d %(levelname)s %(name)s %(message)s')
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    everywhere = [f'--config-file={file}' for file in args.config_file]
    if args.state_path:
        everywhere.append(f'--state-path={args.state_path}')
    watching = Watching(
        lambda: watched_namespaces(args.only), Verbs(everywhere, args.attach_options), again_s=args.again
    )
    watching.begin(_leftovers(args))
    while not stop.wait(args.interval):
        watching.once()
    return 0


def _leftovers(args: argparse.Namespace) -> list[Place]:
    state_path = (
        args.state_path or config_files.load({'config_file': ','.join(args.config_file)}, state_paths.OPTS).state_path
    )
    found = attachment_status.attached(attach.iptables(), state_path=os.path.abspath(state_path))
    return [(one.kind, one.uuid) for one in found if one.namespace is None and args.only in (None, one.kind)]


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f'{text!r} is no number of seconds from 0.1 to 3600')
    return seconds
