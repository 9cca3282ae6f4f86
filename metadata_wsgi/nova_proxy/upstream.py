# SPDX-License-Identifier: Apache-2.0
"""Forward the signed request to Nova's metadata API and relay its answer. Ends the pipeline.

Sends method, raw target, body and an allow-list of headers (``wire.UPSTREAM_ALLOWED``), so that no
header of a guest can mean something to Nova that it does not mean to us. Relays whatever Nova says:
status, end-to-end headers, bytes; a redirect is not followed, nothing is decoded.

Late rather than wrong: a GET or HEAD that meets a dead, silent or failing Nova (500, 502, 503, 504) is
sent again until the deadline, then answered with what Nova said last, or 503 where it said nothing.
A POST (the password) is sent once; again only where it cannot have been received.

While the shared secret is being changed there are two signatures. A request that Nova refuses for the one (403)
is sent with the other, a POST too: refused, nothing came of it. The one that was taken goes first from then on.

``nova_metadata_host`` may name several hosts, separated by commas, each with a port of its own if
need be (``nova1,nova2:8776,[2001:db8::1]:8775``): they are tried in turn, and one that fails is put
aside for a while. Reads DEADLINE and the signature.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from oslo_config import cfg

from metadata_wsgi import limits
from metadata_wsgi.config import config_files, tls_options
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import BadRequest, ConfigError, NoResponse, NotSent
from metadata_wsgi.http import client, error_responses, header_names, message
from metadata_wsgi.http.retry import retry_until
from metadata_wsgi.pipeline import environ_keys
from metadata_wsgi.throttle import Throttle

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

LOG = logging.getLogger(__name__)

OPTS = [
    cfg.ListOpt(
        'nova_metadata_host',
        default=['127.0.0.1'],
        deprecated_name='nova_metadata_ip',
        help="Host of Nova's metadata API; several, separated by commas, are tried in turn.",
    ),
    cfg.PortOpt('nova_metadata_port', default=8775, help="TCP port of Nova's metadata API."),
    cfg.StrOpt(
        'nova_metadata_protocol',
        default='http',
        choices=['http', 'https'],
        help='http, or https with the options below.',
    ),
    cfg.BoolOpt('nova_metadata_insecure', default=False, help="Accept any certificate of Nova's. For tests."),
    cfg.StrOpt('nova_client_cert', default='', help='Client certificate for Nova, a PEM file.'),
    cfg.StrOpt('nova_client_priv_key', default='', help='Private key of the client certificate, a PEM file.'),
    cfg.IntOpt(
        'max_request_body',
        default=limits.MAX_REQUEST_BODY_BYTES,
        min=1020,
        help='Largest request body in bytes; above it a guest hears 413.',
    ),
]

AGAIN = frozenset({500, 502, 503, 504})
"""What Nova answers while something behind it is away. Everything else is its word."""


class HttpClient(Protocol):
    """Where requests can be sent; :class:`metadata_wsgi.http.client.Hop` is the real one."""

    name: str

    def send_request(self, request: message.Request, deadline: Deadline) -> message.Response:
        """Send it once. Raises NotSent or MaybeSent."""


class UpstreamApp:
    """The proxy app: one request to one of ``hops``, patiently."""

    REQUIRES = frozenset({environ_keys.DEADLINE, environ_keys.SIGNED})
    PROVIDES: frozenset[str] = frozenset()

    def __init__(
        self,
        hops: Sequence[HttpClient],
        *,
        max_body_bytes: int = limits.MAX_REQUEST_BODY_BYTES,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._hops = tuple(hops)
        self._max_body_bytes = max_body_bytes
        self._clock = clock
        self._sleep = sleep
        self._aside_until = dict.fromkeys(range(len(self._hops)), 0.0)
        self._seldom_refused = Throttle(limits.LOG_INTERVAL_S)
        self._seldom_other = Throttle(limits.SECRET_CHANGE_LOG_INTERVAL_S)
        # One slot: whether the other signature was the one that Nova took last.
        self._other_first = [False]
        self._seldom_away = Throttle(limits.LOG_INTERVAL_S)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Relay Nova's answer, or say why there is none."""
        try:
            request = self._request(environ)
            answer = self._signed(
                request, environ.get(environ_keys.OTHER_SIGNATURE, ''), environ[environ_keys.DEADLINE]
            )
        except message.TooLarge:
            return error_responses.payload_too_large(self._max_body_bytes)(environ, start_response)
        except BadRequest as error:
            return error_responses.bad_request(str(error))(environ, start_response)
        except NoResponse as error:
            if self._seldom_away.allow():
                LOG.error('Guests are answered 503: Nova gave no answer: %s', error)
            return error_responses.unavailable()(environ, start_response)
        if answer.status == 403 and self._seldom_refused.allow():
            LOG.error(
                'Nova refuses our signature (403): compare metadata_proxy_shared_secret here with '
                '[neutron] metadata_proxy_shared_secret in nova.conf; they must be the same'
            )
        return answer(environ, start_response)

    def _request(self, environ: WSGIEnvironment) -> message.Request:
        headers = [(name, value) for name, value in message.headers(environ) if name in header_names.UPSTREAM_ALLOWED]
        content = message.body(environ, self._max_body_bytes)
        return message.Request(environ['REQUEST_METHOD'], message.target(environ), headers, content)

    def _signed(self, request: message.Request, other_signature: str, deadline: Deadline) -> message.Response:
        if not other_signature:
            return self._insist(request, deadline)
        ours = {False: request, True: _with_signature(request, other_signature)}
        other_first = self._other_first[0]
        # Nova may change its secret between the first try and the second: then it is the first again.
        for last, other in ((False, other_first), (False, not other_first), (True, other_first)):
            answer = self._insist(ours[other], deadline)
            if last or answer.status != 403:
                break
            if hasattr(answer.body, 'close'):
                answer.body.close()
        if answer.status != 403 and other is not other_first:
            self._other_first[0] = other
            if self._seldom_other.allow():
                LOG.info('Nova refused one shared secret and took the %s one', 'old' if other else 'new')
        return answer

    def _insist(self, request: message.Request, deadline: Deadline) -> message.Response:
        return retry_until(
            lambda: self._try_each(request, deadline),
            deadline,
            retry_on=(NoResponse,) if request.is_retryable else (NotSent,),
            retry_if_result=lambda answer: request.is_retryable and answer.status in AGAIN,
            sleep=self._sleep,
        )

    def _try_each(self, request: message.Request, deadline: Deadline) -> message.Response:
        """One try at each host until one answers well; raises or returns what the last one gave."""
        order = sorted(range(len(self._hops)), key=lambda index: self._aside_until[index] > self._clock())
        for position, index in enumerate(order):
            last = position == len(order) - 1
            try:
                # A silent host must leave time for another try, at another host or at itself.
                answer = self._hops[index].send_request(
                    request, deadline.share(2 / 3) if request.is_retryable else deadline
                )
            except NoResponse as error:
                self._put_aside(index, error)
                if last or not (request.is_retryable or isinstance(error, NotSent)):
                    raise
                continue
            if last or not request.is_retryable or answer.status not in AGAIN:
                self._aside_until[index] = 0.0
                return answer
            self._put_aside(index, f'it answered {answer.status}')
        raise NotSent('no host of Nova is configured')

    def _put_aside(self, index: int, why: object) -> None:
        if self._aside_until[index] <= self._clock():
            LOG.warning('Nova at %s fails: %s', self._hops[index].name, why)
        self._aside_until[index] = self._clock() + limits.NOVA_HOST_BACKOFF_S


def _with_signature(request: message.Request, signature: str) -> message.Request:
    headers = [(name, signature if name == header_names.SIGNATURE else value) for name, value in request.headers]
    return message.Request(request.method, request.target, headers, request.body)


def app_factory(global_conf: Mapping[str, str]) -> UpstreamApp:
    """For ``use = egg:metadata_wsgi#upstream``."""
    conf = config_files.load(global_conf, [*OPTS, *tls_options.OPTS])
    tls = _tls(conf) if conf.nova_metadata_protocol == 'https' else None
    hops = [client.tcp_client(*_host_port(text, conf.nova_metadata_port), tls=tls) for text in conf.nova_metadata_host]
    if not hops:
        raise ConfigError("nova_metadata_host is empty: name the host of Nova's metadata API")
    return UpstreamApp(hops, max_body_bytes=conf.max_request_body)


def _host_port(text: str, default_port: int) -> tuple[str, int]:
    """``host``, ``host:port``, ``[v6]:port`` or a bare IPv6 address."""
    host, port = text, str(default_port)
    if text.startswith('[') and ']' in text:
        host, _, rest = text[1:].partition(']')
        port = rest.removeprefix(':') or port
    elif text.count(':') == 1:
        host, port = text.split(':')
    if not host or host.startswith('[') or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f'nova_metadata_host = {text}: not a host; write host, host:port or [IPv6 address]:port')
    return host, int(port)


def _tls(conf: cfg.ConfigOpts) -> ssl.SSLContext:
    try:
        context_ = ssl.create_default_context(cafile=conf.auth_ca_cert or None)
        if conf.nova_client_cert:
            context_.load_cert_chain(conf.nova_client_cert, conf.nova_client_priv_key or None)
    except (OSError, ssl.SSLError) as error:
        names = 'auth_ca_cert, nova_client_cert, nova_client_priv_key'
        raise ConfigError(f'{names}: cannot be used: {error}; each must be a readable PEM file') from error
    if conf.nova_metadata_insecure:
        context_.check_hostname = False
        context_.verify_mode = ssl.CERT_NONE
    return context_
