# SPDX-License-Identifier: Apache-2.0
"""``metadata-wsgi attach``, ``detach`` and ``attached``: the path by hand, for one router or network or for many.

Where an L3 agent of Quantum runs, it attaches its routers itself; these verbs are for clouds without
one, for repairs, and to see what is there. They need root. ``attached`` ends with 1 when something is
only half attached, so that a monitor may call it. Of many, each is attached whatever becomes of the others.

Who serves a router is its mode (``doc/one_hop.md``). Without ``--mode`` it stays what it is, and is ``process``
for one that is not attached yet: that needs nothing but the agent, is what an L3 agent starts, ends and adopts,
and what breaks in it breaks for one router. ``shared`` and ``one_hop`` need the keeper; they are for many routers.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from pathlib import Path
from socket import SOCK_SEQPACKET
from typing import Any

from metadata_wsgi.config import config_files, state_paths
from metadata_wsgi.errors import ConfigError, MetadataError, NetnsError
from metadata_wsgi.keeper import admin_client
from metadata_wsgi.keeper.attachments_client import AttachmentsClient
from metadata_wsgi.netns import attachment_status, lock, namespaces, proxy_process
from metadata_wsgi.netns.attach import Attachments, Proxy, kernel_families
from metadata_wsgi.netns.iptables import Iptables
from metadata_wsgi.netns.rules import Rule, rules_for
from metadata_wsgi.netns.runner import SubprocessRunner
from metadata_wsgi.netns.target import MODES, NETWORK, NOBODY_SERVES, ONE_HOP, PROCESS, ROUTER, SHARED, Place

PROGRAM = 'metadata-wsgi'

MAX_CONCURRENT_ATTACHES = 8
MANY = 4
"""From so many on their rules are copied from one to the next (``plumbing.pattern``)."""
WAITING_AT_ONCE = 64
"""Places that only wait for the kernel to check an address."""


def add_verbs(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the three verbs; each sets ``run``, which takes the parsed arguments and returns an exit code."""
    attach = subparsers.add_parser('attach', help='attach the metadata path to routers or isolated networks')
    _add_place(attach.add_mutually_exclusive_group(required=True))
    _add_everywhere(attach)
    attach.add_argument(
        '--mode',
        choices=MODES,
        help='who serves the guests: "process", a namespace proxy of its own; "shared", one proxy for all '
        'namespaces; "one_hop", the agent itself. The last two need "metadata-wsgi keeper" and suit hosts with '
        'many routers (default: as it is attached already, else process)',
    )
    attach.add_argument('--namespace', help='its namespace (default: qrouter-<id> or qdhcp-<id>)')
    attach.add_argument('--metadata-port', type=_port, default=9697, help="a router's port (default: %(default)s)")
    attach.add_argument(
        '--internal-interfaces',
        type=_interface,
        default='qr-+',
        help="a router's interfaces towards guests; + at the end is any rest (default: %(default)s)",
    )
    attach.add_argument('--mark', default='0x1/0xffff', help='mark of redirected packets (default: %(default)s)')
    attach.add_argument('--interface', type=_interface, help="a network's interface that gets the addresses")
    attach.add_argument('--program', default=default_program(), help='the namespace proxy (default: %(default)s)')
    attach.add_argument('--log-dir', default='', help="directory of the proxy's log file (default: it logs nowhere)")
    attach.add_argument(
        '--no-wait', action='store_true', help='do not wait until IPv6 can be used (2 s), nor see whether it can'
    )
    attach.set_defaults(run=_attach)

    detach = subparsers.add_parser('detach', help='detach it again and remove every trace')
    which = detach.add_mutually_exclusive_group(required=True)
    _add_place(which)
    which.add_argument('--all', action='store_true', help='everything that "attached" shows')
    _add_everywhere(detach)
    detach.add_argument('--namespace', help='its namespace (default: qrouter-<id> or qdhcp-<id>)')
    detach.set_defaults(run=_detach)

    listing = subparsers.add_parser('attached', help='show what is attached on this host, and what only half')
    _add_everywhere(listing)
    listing.set_defaults(run=_attached)


def default_program() -> str:
    """The proxy that was installed beside this program, else the one on PATH."""
    beside = os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), 'quantum-ns-metadata-proxy')
    if os.access(beside, os.X_OK):
        return beside
    return shutil.which('quantum-ns-metadata-proxy') or 'quantum-ns-metadata-proxy'


def _add_place(group: argparse._MutuallyExclusiveGroup) -> None:
    group.add_argument('--router-id', type=_uuid, metavar='ID', action='append', help='a router; may be repeated')
    group.add_argument(
        '--network-id', type=_uuid, metavar='ID', action='append', help='a network without router; may be repeated'
    )
    group.add_argument(
        '--file',
        metavar='LIST',
        help='many: lines "router ID" or "network ID", then its namespace if another; - is stdin',
    )


def _add_everywhere(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--config-file', action='append', default=[], help="the agent's files, for the two below")
    parser.add_argument('--state-path', help='directory of pid files and socket')
    parser.add_argument('--metadata-proxy-socket', help="the agent's socket")
    parser.add_argument(
        '--iptables', metavar='NAME', help='iptables, iptables-nft or iptables-legacy (default: the one in use)'
    )


def _one_sentence(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    @wraps(run)
    def wrapped(args: argparse.Namespace) -> int:
        try:
            if os.geteuid() != 0:
                raise NetnsError('namespaces and rules can only be reached by root; run it with sudo')
            return run(args)
        except MetadataError as error:
            print(f'{PROGRAM}: {error}', file=sys.stderr)
            return 1

    return wrapped


@_one_sentence
def _attach(args: argparse.Namespace) -> int:
    places = _places(args)
    with lock.alone(state_path(args)):
        modes = {} if args.mode else {one.place.uuid: one.mode for one in AttachmentsClient(state_path(args)).kept()}
        attaching = Attaching(args, modes, count=len(places))
        failed = _each(places, attaching.attach, MAX_CONCURRENT_ATTACHES)
    _warn_of_nobody(args, {attaching.mode(place) for place in places if place not in failed})
    if not args.no_wait:
        # The kernel checks all addresses at the same time.
        failed += _each([place for place in places if place not in failed], attaching.settle, WAITING_AT_ONCE)
    return 1 if failed else 0


class Attaching:
    """Attaches ``count`` places or so as the arguments of ``attach`` say; ``modes`` are those of ids that have one."""

    def __init__(self, args: argparse.Namespace, modes: Mapping[str, str], *, count: int) -> None:
        self._args = args
        self._modes = modes
        rules = {'port': args.metadata_port, 'interfaces': args.internal_interfaces, 'mark': args.mark}
        self._attachments = _attachments(args, _for_many(count, **rules), args.program, args.log_dir)

    def attach(self, place: Place) -> str:
        """Attach it and wait for nothing; what is to be said of it. Raises MetadataError."""
        more = {'mark': self._args.mark, 'interface': self._args.interface, 'wait_for_ipv6': False}
        changed = self._attachments.attach(place, **self._how(place), **more)
        how = HOW[self.mode(place)][changed]
        return f'{place.kind} {place.uuid} is attached in {place.namespace}: {how}'

    def settle(self, place: Place) -> str:
        """Wait until its IPv6 address can be used."""
        self._attachments.settle(place, **self._how(place))
        return ''

    def mode(self, place: Place) -> str:
        """Who serves it."""
        return str(self._args.mode or self._modes.get(place.uuid, PROCESS))

    def _how(self, place: Place) -> dict[str, Any]:
        interfaces = self._args.internal_interfaces
        return {'mode': self.mode(place), 'port': self._args.metadata_port, 'interfaces': interfaces}


def _warn_of_nobody(args: argparse.Namespace, modes: set[str]) -> None:
    kept_modes = modes - {PROCESS}
    workers = AttachmentsClient(state_path(args)).workers() if kept_modes else {}
    for mode in sorted(kept_modes - set(workers)):
        print(f'{PROGRAM}: {NOBODY_SERVES[mode]}', file=sys.stderr)


HOW = {
    PROCESS: ('its proxy runs already', 'a proxy was started'),
    SHARED: ('the shared proxy serves it already', 'the shared proxy serves it'),
    ONE_HOP: ('the agent serves it already', 'the agent serves it'),
}


@_one_sentence
def _detach(args: argparse.Namespace) -> int:
    with lock.alone(state_path(args)):
        places = [found.place for found in _found(args)] if args.all else _places(args)
        return 1 if _each(places, detaching(args, count=len(places)), MAX_CONCURRENT_ATTACHES) else 0


def detaching(args: argparse.Namespace, *, count: int) -> Callable[[Place], str]:
    """How to detach one of about ``count`` places, as the arguments of ``detach`` say."""
    attachments = _attachments(args, _for_many(count))

    def detach(place: Place) -> str:
        return f'{place.kind} {place.uuid} {"is detached" if attachments.detach(place) else "was not attached"}'

    return detach


def each(
    places: Sequence[Place], act: Callable[[Place], str], concurrency: int = MAX_CONCURRENT_ATTACHES
) -> list[tuple[str, str]]:
    """Do it for each, some at the same time; of each what ``act`` says of it, and why it failed or ''."""

    def tried(place: Place) -> tuple[str, str]:
        try:
            return act(place), ''
        except (MetadataError, OSError) as error:
            return '', str(error)

    if len(places) < 2:
        return [tried(place) for place in places]
    with ThreadPoolExecutor(min(concurrency, len(places))) as pool:
        return list(pool.map(tried, places))


def _each(places: Sequence[Place], act: Callable[[Place], str], concurrency: int) -> list[Place]:
    """The same, and print what is said of each, last which failed and why; returns those."""
    failed = {}
    for place, (sentence, error) in zip(places, each(places, act, concurrency), strict=True):
        if error:
            failed[place] = error
        elif sentence:
            print(sentence)
    for place, error in failed.items():
        of_many = f'{place.kind} {place.uuid}: ' if len(places) > 1 else ''
        print(f'{PROGRAM}: {of_many}{error}', file=sys.stderr)
    if failed and len(places) > 1:
        print(f'{PROGRAM}: {len(failed)} of {len(places)} failed', file=sys.stderr)
    return [*failed]


@_one_sentence
def _attached(args: argparse.Namespace) -> int:
    found = _found(args)
    print(table(found), end='')
    return 1 if any(one.problems for one in found) else 0


def table(found: list[attachment_status.Attached]) -> str:
    """What was found, as text in columns; below each line what is wrong with it, and what is only worth knowing."""
    rows = [('KIND', 'ID', 'NAMESPACE', 'MODE', 'PID', 'PORT', 'RULES')]
    rows += [
        (one.kind, one.uuid, one.namespace or '-', one.mode, str(one.pid or '-'), str(one.port), one.rules)
        for one in found
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ['  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    text = lines[0] + '\n'
    for line, one in zip(lines[1:], found, strict=True):
        text += line + '\n' + ''.join(f'    ! {problem}\n' for problem in one.problems)
        text += ''.join(f'    - {note}\n' for note in one.notes)
    return text


def _places(args: argparse.Namespace) -> list[Place]:
    if args.file:
        if args.namespace:
            raise ConfigError('--namespace is for one router or network; in the list it stands behind the id')
        return list(dict.fromkeys(_listed(args.file)))
    kind, ids = (ROUTER, args.router_id) if args.router_id else (NETWORK, args.network_id)
    if args.namespace and len(ids) > 1:
        raise ConfigError('--namespace is for one router or network')
    return [Place.of(kind, uuid, args.namespace) for uuid in dict.fromkeys(ids)]


def _listed(name: str) -> Iterable[Place]:
    try:
        text = sys.stdin.read() if name == '-' else Path(name).read_text(encoding='utf-8')
    except (OSError, UnicodeError) as error:
        raise ConfigError(f'{name}: cannot be read: {error}') from error
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition('#')[0].split()
        if not words:
            continue
        if words[0] not in (ROUTER, NETWORK) or not 2 <= len(words) <= 3:
            raise ConfigError(f'{name} line {number}: it is "router ID" or "network ID", and its namespace if another')
        try:
            yield Place.of(words[0], _uuid(words[1]), words[2] if len(words) == 3 else None)
        except argparse.ArgumentTypeError as error:
            raise ConfigError(f'{name} line {number}: {error}') from error


def _paths(args: argparse.Namespace) -> tuple[str, str]:
    """(state_path, metadata_proxy_socket): a flag wins over the file; a default socket follows the state path."""
    conf = config_files.load({'config_file': ','.join(args.config_file)}, state_paths.OPTS)
    if args.state_path:
        conf.set_override('state_path', os.path.abspath(args.state_path))
    if args.metadata_proxy_socket:
        conf.set_override('metadata_proxy_socket', os.path.abspath(args.metadata_proxy_socket))
    return conf.state_path, conf.metadata_proxy_socket


def _for_many(count: int, **how: Any) -> Sequence[Rule]:
    """The rules to copy. For a few it is not worth it."""
    return rules_for(families=kernel_families(), **how) if count >= MANY else ()


def _attachments(args: argparse.Namespace, many: Sequence[Rule], program: str = '', log_dir: str = '') -> Attachments:
    path, socket = _paths(args)
    proxy = Proxy(program=program, state_path=path, socket=socket, log_dir=log_dir and os.path.abspath(log_dir))
    runner = SubprocessRunner()
    rule_keeper = Iptables(runner, binary=args.iptables, many=many)
    return Attachments(
        runner, proxy=proxy, iptables=rule_keeper, keeping=AttachmentsClient(path), keeper_pid=lambda: _keeper_pid(path)
    )


def _keeper_pid(path: str) -> int | None:
    try:
        # 0 is one in another namespace of processes.
        return proxy_process.serving(admin_client.socket_path(path), SOCK_SEQPACKET) or None
    except OSError:
        return None


def _found(args: argparse.Namespace) -> list[attachment_status.Attached]:
    kept = AttachmentsClient(state_path(args)).kept()
    return attachment_status.attached(iptables(args.iptables), state_path=state_path(args), kept=kept)


def state_path(args: argparse.Namespace) -> str:
    """Where pid files are, and the keeper's socket."""
    return _paths(args)[0]


def iptables(binary: str | None = None) -> Iptables:
    """To look at the rules of all namespaces of this host."""
    return Iptables(SubprocessRunner(), binary=binary, many=_for_many(len(namespaces.names())))


def _uuid(text: str) -> str:
    # It becomes a file's and a namespace's name, and is looked for in command lines: not any text will do.
    if not re.fullmatch(r'[A-Za-z0-9][A-Za-z0-9_-]{3,63}', text):
        raise argparse.ArgumentTypeError(f'{text!r} is no id; it is 4 to 64 letters, digits and dashes')
    return text


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f'{text!r} is no port; it is a number from 1 to 65535')
    return int(text)


def _interface(text: str) -> str:
    # IFNAMSIZ is 16 with the end mark. A word of its own in iptables-restore's input: no blanks, no quotes.
    if not re.fullmatch(r'[A-Za-z0-9][A-Za-z0-9_.@-]{0,13}[A-Za-z0-9_.+-]?', text):
        raise argparse.ArgumentTypeError(f'{text!r} is no interface name')
    return text
