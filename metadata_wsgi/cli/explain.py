# SPDX-License-Identifier: Apache-2.0
"""``metadata-wsgi explain``: the first command to run when an instance gets no metadata.

Passes one request through the configured pipeline as if the instance had sent it. The arguments are a router or network
and an address. Each filter that passes the request on gets a line with its time and the data that it
sets. Further lines are the queries of the lookup and the request to Nova, with the signature masked. With ``--send``
the request is sent to Nova, and Nova's response is printed. In the formats for programs there is a row for each step,
without the body of the response.
"""

from __future__ import annotations

import argparse
import io
import itertools
import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from metadata_wsgi.cli import check_config, listing, verbs
from metadata_wsgi.cli.exit_codes import NOT_WELL, WELL
from metadata_wsgi.cli.terminal import printable
from metadata_wsgi.config import config_files, neutron_files
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import MetadataError
from metadata_wsgi.filters import header_source, socket_source
from metadata_wsgi.http import header_names, message
from metadata_wsgi.lookup import protocol
from metadata_wsgi.net import addresses
from metadata_wsgi.nova_proxy import upstream
from metadata_wsgi.pipeline import environ_keys, order

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

COLUMNS = ('step', 'text', 'ms', 'details')


def add_verb(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        subparsers,
        'explain',
        description='The first command to run when an instance gets no metadata. Passes one request from this address '
        'through the configured pipeline, in this process. Prints what each filter finds, the queries to Neutron and '
        'the request to Nova, which is sent only with --send. Exit code 0: the request reached the end of the pipeline '
        '(with --send: Nova responded 200). 1: it did not. 2: the configuration does not load.',
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument('--router-id', help='id of the router that the instance is behind')
    where.add_argument('--network-id', help='id of the isolated network that the instance is on')
    parser.add_argument('address', help='IP address of the instance')
    parser.add_argument(
        '--path', default='/openstack/latest/meta_data.json', help='path of the request (default: %(default)s)'
    )
    parser.add_argument('--send', action='store_true', help='send the request to Nova and print the response')
    check_config.add_configuration(parser)
    listing.add_arguments(parser, COLUMNS)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the trace. Returns 0 if the request reached the end of the pipeline, else 1.

    With ``--send``, returns 0 only if Nova responded with 200.
    """
    _, app = check_config.load(args)
    links = order.chain(app)
    trace = _Trace(sys.stdout.write if listing.is_text(args) else lambda text: None)
    for link in links:
        lookup: object = protocol.lookup_of(link)
        if isinstance(lookup, protocol.ReportsQueries):
            lookup.on_query = trace.query
        if isinstance(lookup, protocol.ReportsOtherPorts):
            lookup.on_other_port = trace.note
    for outer, inner in itertools.pairwise(links):
        _insert(outer, inner, _Probe(trace, outer, inner, send=args.send, last=inner is links[-1]))
    is_one_hop = any(isinstance(link, socket_source.SocketSourceFilter) for link in links)
    environ = _environ(args) | (_connection(args) if is_one_hop else _proxy_headers(args))
    status_lines: list[str] = []

    def start_response(
        status: str, headers: list[tuple[str, str]], exc_info: object = None, /
    ) -> Callable[[bytes], object]:
        status_lines.append(status)
        trace.response(status, headers)
        return lambda data: None

    body = b''.join(app(environ, start_response))
    if status_lines != [_Probe.NOT_SENT]:
        # A tenant may have written the body, so escape sequences are removed.
        trace.write(''.join(f'{printable(line)}\n' for line in body.decode('utf-8', 'replace').split('\n')))
    if not listing.is_text(args):
        listing.write(args, listing.Listing(COLUMNS, trace.rows()), sys.stdout)
    return WELL if status_lines[0].startswith('200') else NOT_WELL


class _Trace:
    """Prints the steps and measures the time of each step."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self.write = write
        self._since_s = time.monotonic()
        self._rows: list[tuple[str, str, float | None]] = []
        self._details: list[list[str]] = []
        self._pending: list[str] = []

    def rows(self) -> list[tuple[listing.Cell, ...]]:
        """A row for each step so far."""
        return [(*row, tuple(details)) for row, details in zip(self._rows, self._details, strict=True)]

    def step(self, name: str, text: str, *, is_timed: bool = True) -> None:
        """Record and print a step, with the time since the last timed step if ``is_timed``."""
        elapsed_ms = None
        if is_timed:
            now_s = time.monotonic()
            elapsed_ms, self._since_s = round((now_s - self._since_s) * 1000, 1), now_s
        self._rows.append((name, text, elapsed_ms))
        # A lookup reports its queries before its filter has a result.
        self._details.append(self._pending)
        self._pending = []
        self.write(f'{name:<13} {text}' + (f'   ({elapsed_ms:.1f} ms)\n' if is_timed else '\n'))

    def detail(self, text: str, *, is_of_last_step: bool = True) -> None:
        """Print a line below the last step if ``is_of_last_step``, else above the next step."""
        (self._details[-1] if is_of_last_step else self._pending).append(text)
        self.write(f'{"":14}{text}\n')

    def query(self, query: str, seconds: float, count: int) -> None:
        """Print a query of the lookup: its text, its time, and how many entries were found."""
        self.detail(f'{count} from {query} in {seconds * 1000:.1f} ms', is_of_last_step=False)

    def note(self, text: str) -> None:
        """Print a message of the lookup about a port that the lookup found but did not use."""
        self.detail(text, is_of_last_step=False)

    def response(self, status: str, headers: list[tuple[str, str]]) -> None:
        """Print status and headers of the response."""
        if status == _Probe.NOT_SENT:
            return
        self.step('response', printable(status))
        for name, value in headers:
            self.detail(printable(f'{name}: {value}'))


class _Probe:
    """A WSGI app between two filters. Prints the data that the outer filter has set, and calls the inner filter."""

    NOT_SENT = '200 Not sent'

    def __init__(self, trace: _Trace, outer: Any, inner: WSGIApplication, *, send: bool, last: bool) -> None:
        self.app = inner
        self._trace = trace
        self._outer = outer
        self._send = send
        self._last = last

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        values = [_readable(key, environ[key]) for key in getattr(self._outer, 'PROVIDES', ()) if key in environ]
        found = ', '.join(sorted(filter(None, values))) or '-'
        self._trace.step(order.name(self._outer), found)
        if not self._last:
            return self.app(environ, start_response)
        self._trace.step('request', f'{environ["REQUEST_METHOD"]} {message.target(environ)}', is_timed=False)
        for name, value in _headers_for_nova(environ):
            self._trace.detail(f'{name}: {value}')
        if self._send:
            return self.app(environ, start_response)
        self._trace.write('not sent; use --send to send it\n')
        start_response(self.NOT_SENT, [])
        return []


def _headers_for_nova(environ: WSGIEnvironment) -> message.Headers:
    """The headers of the request to Nova, with the signature masked."""
    headers = message.headers(environ, header_names.upstream_name)
    identity = environ.get(environ_keys.SIGNED_IDENTITY)
    if identity is not None:
        headers += upstream.identity_headers(identity, identity.signatures[0][:6] + '... (masked)')
    return headers


def _readable(key: str, value: object) -> str:
    if key == environ_keys.CLIENT_IS_PROXY:
        # Not printed: the key describes a client's connection, and this request has none.
        return ''
    return f'{value.remaining_s():.1f} s remaining' if isinstance(value, Deadline) else str(value)


def _insert(outer: Any, inner: Any, probe: _Probe) -> None:
    for attribute in order.INNER_ATTRIBUTES:
        if getattr(outer, attribute, None) is inner:
            setattr(outer, attribute, probe)


def _environ(args: argparse.Namespace) -> WSGIEnvironment:
    """The request, without the data that name the instance."""
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
        # There is no socket whose peer peer_credentials could check.
        'paste.testing': True,
        'HTTP_ACCEPT': '*/*',
        'HTTP_USER_AGENT': 'metadata-wsgi explain',
    }


def _proxy_headers(args: argparse.Namespace) -> WSGIEnvironment:
    """The headers that the namespace proxy of this router or network would add."""
    prefix = config_files.load(neutron_files.global_conf_of(args), header_source.OPTS).metadata_header_prefix.lower()
    id_header = header_names.router_id(prefix) if args.router_id else header_names.network_id(prefix)
    # An address fe80::1%qr-1a2b3c4d-5e has an interface. The namespace proxy sends the interface in a header.
    address, _, interface = args.address.partition('%')
    return {
        'HTTP_X_FORWARDED_FOR': address,
        **({header_names.environ_key(header_names.CLIENT_INTERFACE): interface} if interface else {}),
        header_names.environ_key(id_header): args.router_id or args.network_id,
    }


def _connection(args: argparse.Namespace) -> WSGIEnvironment:
    """What the server sets for a connection in the namespace of this router or network (mode one_hop)."""
    try:
        addresses.normalize_ip(args.address)
    except ValueError:
        raise MetadataError(f'{args.address} is not an IP address') from None
    return {
        'REMOTE_ADDR': args.address,
        environ_keys.NAMESPACE: environ_keys.Namespace(args.router_id, args.network_id),
    }
