# SPDX-License-Identifier: Apache-2.0
"""``metadata-wsgi explain``: the first thing to run when a guest has no keys.

Walks one request through the configured pipeline, filter by filter, without a guest: for a router or
network and an address it prints what each filter establishes and how long it took, the directory's
queries, and the request that would go to Nova, its signature masked. With ``--send`` the request is
sent, and Nova's answer printed.
"""

from __future__ import annotations

import argparse
import io
import itertools
import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from metadata_wsgi.cli import check_config
from metadata_wsgi.config import config_files
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.filters import header_source
from metadata_wsgi.http import header_names, message
from metadata_wsgi.lookup import protocol
from metadata_wsgi.pipeline import environ_keys, order

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

MASKED = frozenset({header_names.SIGNATURE})


def add_verb(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    parser = subparsers.add_parser(
        'explain', help='walk one request through the pipeline and say what each filter finds'
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument('--router-id', help='the router that the guest is behind')
    where.add_argument('--network-id', help='the isolated network that the guest is on')
    parser.add_argument('address', help="the guest's address")
    parser.add_argument(
        '--path', default='/openstack/latest/meta_data.json', help='what it asks for (default: %(default)s)'
    )
    parser.add_argument('--send', action='store_true', help='send the request to Nova and print its answer')
    check_config.add_configuration(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the walk; 0 when the pipeline came to its end (with --send: and Nova answered 200), else 1."""
    _, app = check_config.load(args)
    links = order.chain(app)
    walk = _Walk(sys.stdout.write)
    for link in links:
        lookup: object = protocol.lookup_of(link)
        if isinstance(lookup, protocol.ReportsQueries):
            lookup.on_query = walk.query
        if hasattr(lookup, 'on_other_port'):
            lookup.on_other_port = walk.note
    for outer, inner in itertools.pairwise(links):
        _put_between(outer, inner, _Station(walk, outer, inner, send=args.send, last=inner is links[-1]))
    environ = _environ(args)
    answer: list[str] = []

    def start_response(
        status: str, headers: list[tuple[str, str]], exc_info: object = None, /
    ) -> Callable[[bytes], object]:
        answer.append(status)
        walk.answer(status, headers)
        return lambda data: None

    body = b''.join(app(environ, start_response))
    if answer != [_Station.NOT_SENT]:
        walk.write(body.decode('utf-8', 'replace') + '\n')
    return 0 if answer[0].startswith('200') else 1


class _Walk:
    """What is printed, and the clock."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self.write = write
        self._since = time.monotonic()

    def elapsed_ms(self) -> float:
        """Milliseconds since this was last asked."""
        now = time.monotonic()
        elapsed, self._since = (now - self._since) * 1000, now
        return elapsed

    def query(self, query: str, seconds: float, count: int) -> None:
        """A directory's query: what was asked, how long it took, how many entries came back."""
        self.write(f'{"":14}{count} from {query} in {seconds * 1000:.1f} ms\n')

    def note(self, text: str) -> None:
        """A sentence of a lookup about what it found and did not use."""
        self.write(f'{"":14}{text}\n')

    def answer(self, status: str, headers: list[tuple[str, str]]) -> None:
        """The answer's head."""
        if status == _Station.NOT_SENT:
            return
        self.write(f'answer        {status}   ({self.elapsed_ms():.1f} ms)\n')
        for name, value in headers:
            self.write(f'{"":14}{name}: {value}\n')


class _Station:
    """Stands between two filters and says what the one before it has established."""

    NOT_SENT = '200 Not sent'

    def __init__(self, walk: _Walk, outer: Any, inner: WSGIApplication, *, send: bool, last: bool) -> None:
        self.app = inner
        self._walk = walk
        self._outer = outer
        self._send = send
        self._last = last

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        facts = [_readable(key, environ[key]) for key in getattr(self._outer, 'PROVIDES', ()) if key in environ]
        said = ', '.join(sorted(filter(None, facts))) or '-'
        self._walk.write(f'{order.name(self._outer):<13} {said}   ({self._walk.elapsed_ms():.1f} ms)\n')
        if not self._last:
            return self.app(environ, start_response)
        self._walk.write(f'request       {environ["REQUEST_METHOD"]} {message.target(environ)}\n')
        for name, value in message.headers(environ):
            if name in header_names.UPSTREAM_ALLOWED:
                shown = value[:6] + '... (masked)' if name in MASKED else value
                self._walk.write(f'{"":14}{name}: {shown}\n')
        if self._send:
            return self.app(environ, start_response)
        self._walk.write('not sent; --send sends it\n')
        start_response(self.NOT_SENT, [])
        return []


def _readable(key: str, fact: object) -> str:
    if key == environ_keys.FORWARDED:
        # A request of ours is never one that a guest forwards.
        return ''
    return f'{fact.remaining_s():.1f} s are left' if isinstance(fact, Deadline) else str(fact)


def _put_between(outer: Any, inner: Any, station: _Station) -> None:
    for attribute in order.WRAPS:
        if getattr(outer, attribute, None) is inner:
            setattr(outer, attribute, station)


def _environ(args: argparse.Namespace) -> WSGIEnvironment:
    """The request as the namespace proxy of that router or network would send it."""
    prefix = config_files.load(check_config.global_conf_of(args), header_source.OPTS).metadata_header_prefix.lower()
    header = header_names.router_id(prefix) if args.router_id else header_names.network_id(prefix)
    return {
        'REQUEST_METHOD': 'GET',
        'SCRIPT_NAME': '',
        'PATH_INFO': args.path,
        'RAW_URI': args.path,
        'QUERY_STRING': '',
        'SERVER_NAME': '169.254.169.254',
        'SERVER_PORT': '80',
        'SERVER_PROTOCOL': 'HTTP/1.1',
        'wsgi.version': (1, 0),
        'wsgi.url_scheme': 'http',
        'wsgi.input': io.BytesIO(),
        'wsgi.errors': sys.stderr,
        'wsgi.multithread': False,
        'wsgi.multiprocess': False,
        'wsgi.run_once': True,
        # No server between us and the pipeline: peer_credentials has nobody to ask about.
        'paste.testing': True,
        'HTTP_X_FORWARDED_FOR': args.address,
        'HTTP_' + header.upper().replace('-', '_'): args.router_id or args.network_id,
        'HTTP_ACCEPT': '*/*',
        'HTTP_USER_AGENT': 'metadata-wsgi explain',
    }
