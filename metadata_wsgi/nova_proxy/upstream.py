# SPDX-License-Identifier: Apache-2.0
"""Send the signed request to Nova's metadata API and relay the response. The app at the end of the pipeline.

Method, raw target, body and an allow-list of headers (``header_names.UPSTREAM_ALLOWED``) are sent, so that no header
of a client has a meaning for Nova that it does not have here, and the headers that Nova authenticates, which are made
here of SIGNED_IDENTITY. Nova's status, end-to-end headers and bytes are relayed; a redirect is not followed and
nothing is decoded.

A GET or HEAD is retried until the deadline where Nova is unreachable, does not respond, or answers 500, 502, 503 or
504. Then the client gets Nova's last response, or 503 if there was none. A POST (the password) is sent once; it is
retried only if it cannot have been received. All requests of a worker share a budget of retries, and a host that
accepts no connections gets one attempt at a time: a Nova that fails is not loaded with the retries of every client.

While the shared secret is being changed there are two signatures. A request that Nova refuses with the one (403) is
sent with the other, a POST too, because a refused request has no effect. The accepted one is used first from then on.

``nova_metadata_host`` may name several hosts, separated by commas, each with its own port if needed
(``nova1,nova2:8776,[2001:db8::1]:8775``). They are tried in order; a host that failed is tried after the others for
``limits.NOVA_HOST_BACKOFF_S`` seconds. Reads DEADLINE and SIGNED_IDENTITY.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from oslo_config import cfg

from metadata_wsgi import limits
from metadata_wsgi.config import config_files, tls_options
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import BadRequest, ConfigError, MaybeSent, NoResponse, NotSent, RequestTimeout
from metadata_wsgi.http import client, error_responses, header_names, message
from metadata_wsgi.http.circuit_breaker import CircuitBreaker
from metadata_wsgi.http.client import HttpClient
from metadata_wsgi.http.retry import RetryBudget, retry_until
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
        help="Host of Nova's metadata API; several, separated by commas, are tried in order.",
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
        help='Largest request body in bytes; a larger one is answered 413.',
    ),
]

RETRYABLE_STATUSES = frozenset({500, 502, 503, 504})
"""Nova answers these while something that it needs is unavailable. Every other status is relayed at once."""

PATHS_OF_EVERY_INSTANCE = frozenset(
    {
        '/openstack',
        '/openstack/latest',
        '/openstack/latest/meta_data.json',
        '/latest',
        '/latest/meta-data',
        '/latest/meta-data/instance-id',
        '/2009-04-04/meta-data',
        '/2009-04-04/meta-data/instance-id',
    }
)
"""Nova has these for every instance that it knows; cloud-init, Ignition and CirrOS start with one of them."""


class UpstreamApp:
    """The proxy app: sends each request to one of ``clients``, with retries."""

    REQUIRES = frozenset({environ_keys.DEADLINE, environ_keys.SIGNED_IDENTITY})
    PROVIDES: frozenset[str] = frozenset()

    def __init__(
        self,
        clients: Sequence[HttpClient],
        *,
        max_body_bytes: int = limits.MAX_REQUEST_BODY_BYTES,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.clients = tuple(clients)
        self._max_body_bytes = max_body_bytes
        self._sleep = sleep
        self._hosts = [_Host(client, clock) for client in self.clients]
        self._retry_budget = RetryBudget(clock)
        # Index in ``signatures`` of the one that Nova accepted last.
        self._accepted_signature = 0
        self._refused_log = Throttle(limits.LOG_INTERVAL_S)
        # Whether Nova's metadata API has answered 200 since the worker started; until then, how many 404s it has sent.
        self._has_known_an_instance = False
        self._unknown_instances = 0
        self._unknown_log = Throttle(limits.UNKNOWN_INSTANCES_LOG_INTERVAL_S)
        self._secret_change_log = Throttle(limits.SECRET_CHANGE_LOG_INTERVAL_S)
        self._no_response_log = Throttle(limits.LOG_INTERVAL_S)
        self._slow_client_log = Throttle(limits.LOG_INTERVAL_S)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Relay Nova's response; 503 if there is none, 400, 408 or 413 for a request that cannot be sent."""
        identity: environ_keys.SignedIdentity = environ[environ_keys.SIGNED_IDENTITY]
        deadline: Deadline = environ[environ_keys.DEADLINE]
        try:
            response = self._send_signed(self._request(environ, deadline), identity, deadline)
        except message.TooLarge:
            return error_responses.payload_too_large(self._max_body_bytes)(environ, start_response)
        except RequestTimeout:
            if self._slow_client_log.allow():
                LOG.info('A request gets 408: its client did not send the body in time')
            return error_responses.request_timeout()(environ, start_response)
        except BadRequest as error:
            return error_responses.bad_request(str(error))(environ, start_response)
        except NoResponse as error:
            if self._no_response_log.allow():
                LOG.error('Requests get 503: no response from Nova: %s', error)
            return error_responses.unavailable()(environ, start_response)
        self._check_status(response.status, environ.get('PATH_INFO', ''))
        return response(environ, start_response)

    def _check_status(self, status: int, path: str) -> None:
        """Log what a status of Nova says about its configuration."""
        if status == 403 and self._refused_log.allow():
            LOG.error(
                'Nova refuses the signature (403): compare metadata_proxy_shared_secret here with '
                '[neutron] metadata_proxy_shared_secret in nova.conf; they must be the same'
            )
        if status == 200:
            self._has_known_an_instance = True
        elif status == 404 and not self._has_known_an_instance and path.rstrip('/') in PATHS_OF_EVERY_INSTANCE:
            self._unknown_instances += 1
            if self._unknown_instances >= limits.UNKNOWN_INSTANCES_WARNING and self._unknown_log.allow():
                LOG.warning(
                    'Nova has answered 404 to all of the first %d requests, for instances that the lookup knows: '
                    'if Nova has [neutron] service_metadata_proxy = false, or misspelt, in nova.conf, it ignores '
                    'the signature and answers 404 to every instance',
                    self._unknown_instances,
                )

    def _request(self, environ: WSGIEnvironment, deadline: Deadline) -> message.Request:
        """The client's request, without the identity."""
        headers = [(name, value) for name, value in message.headers(environ) if name in header_names.UPSTREAM_ALLOWED]
        content = message.body(environ, self._max_body_bytes, deadline.fraction(limits.BODY_DEADLINE_FRACTION))
        return message.Request(environ['REQUEST_METHOD'], message.target(environ), headers, content)

    def _send_signed(
        self, request: message.Request, identity: environ_keys.SignedIdentity, deadline: Deadline
    ) -> message.Response:
        """Send the request with the signature that Nova accepted last; where Nova refuses it, with the others."""
        first = self._accepted_signature % len(identity.signatures)
        others = [number for number in range(len(identity.signatures)) if number != first]
        # Nova's secret may change between two attempts: therefore the first signature again at the end.
        attempts = [first, *others, first] if others else [first]
        for position, number in enumerate(attempts):
            headers = [*request.headers, *identity_headers(identity, identity.signatures[number])]
            signed = message.Request(request.method, request.target, headers, request.body)
            response = self._send_until(signed, deadline)
            if response.status != 403 or position == len(attempts) - 1:
                break
            if hasattr(response.body, 'close'):
                response.body.close()
        if response.status != 403 and number != first:
            self._accepted_signature = number
            if self._secret_change_log.allow():
                LOG.info('Nova refused one shared secret and accepted the %s one', 'old' if number else 'new')
        return response

    def _send_until(self, request: message.Request, deadline: Deadline) -> message.Response:
        self._retry_budget.add_request()
        response = retry_until(
            lambda: self._send_to_hosts(request, deadline),
            deadline,
            retry_on=(NoResponse,) if request.is_retryable else (NotSent,),
            retry_if_result=lambda response: request.is_retryable and response.status in RETRYABLE_STATUSES,
            may_retry=self._may_retry,
            sleep=self._sleep,
        )
        if response.status not in RETRYABLE_STATUSES:
            self._retry_budget.add_success()
        return response

    def _may_retry(self) -> bool:
        return any(host.circuit.allows_attempt() for host in self._hosts) and self._retry_budget.take_retry()

    def _send_to_hosts(self, request: message.Request, deadline: Deadline) -> message.Response:
        """One attempt at each host until one succeeds; returns or raises the outcome of the last one."""
        hosts = [host for host in self._hosts if host.circuit.allows_attempt()]
        if not hosts:
            raise NotSent(self._hosts[-1].circuit.last_error)
        hosts.sort(key=lambda host: host.is_backed_off())
        for host in hosts:
            is_last = host is hosts[-1]
            try:
                # A host that does not respond must leave time for another attempt.
                response = host.send_request(request, deadline.fraction(2 / 3) if request.is_retryable else deadline)
            except NoResponse as error:
                host.back_off(error)
                if is_last or not (request.is_retryable or isinstance(error, NotSent)):
                    raise
                continue
            if is_last or not request.is_retryable or response.status not in RETRYABLE_STATUSES:
                host.end_backoff()
                return response
            host.back_off(f'it answered {response.status}')
        raise AssertionError('the last host returns or raises')


class _Host:
    """A host of Nova, and its health."""

    def __init__(self, client: HttpClient, clock: Callable[[], float]) -> None:
        self.client = client
        self.circuit = CircuitBreaker(clock)
        self._clock = clock
        self._backed_off_until_s = 0.0
        self._failure_log = Throttle(limits.LOG_INTERVAL_S, clock)

    def send_request(self, request: message.Request, deadline: Deadline) -> message.Response:
        """As HttpClient; records whether a connection was made."""
        self.circuit.start_attempt()
        had_time = deadline.remaining_s() >= limits.CIRCUIT_MIN_TIME_S
        try:
            response = self.client.send_request(request, deadline)
        except NotSent as error:
            self.circuit.record_failure(error, had_time=had_time)
            raise
        except MaybeSent:
            self.circuit.record_connected()
            raise
        self.circuit.record_connected()
        return response

    def is_backed_off(self) -> bool:
        """Whether the host is tried after the others."""
        return self._backed_off_until_s > self._clock()

    def back_off(self, reason: object) -> None:
        """The host failed: try it after the others for a while."""
        if not self.is_backed_off() and self._failure_log.allow():
            LOG.warning('Nova at %s fails: %s', self.client.name, reason)
        self._backed_off_until_s = self._clock() + limits.NOVA_HOST_BACKOFF_S

    def end_backoff(self) -> None:
        """The host works."""
        self._backed_off_until_s = 0.0


def identity_headers(identity: environ_keys.SignedIdentity, signature: str) -> message.Headers:
    """The headers that Nova authenticates. No client's header of these names is ever sent to Nova."""
    return [
        (header_names.FORWARDED_FOR, identity.address),
        (header_names.INSTANCE_ID, identity.instance.instance_id),
        (header_names.TENANT_ID, identity.instance.project_id),
        (header_names.SIGNATURE, signature),
    ]


def app_factory(global_conf: Mapping[str, str]) -> UpstreamApp:
    """For ``use = egg:metadata_wsgi#upstream``."""
    conf = config_files.load(global_conf, [*OPTS, *tls_options.OPTS])
    tls = _tls(conf) if conf.nova_metadata_protocol == 'https' else None
    hosts = [_host_port(text, conf.nova_metadata_port) for text in conf.nova_metadata_host]
    if not hosts:
        raise ConfigError("nova_metadata_host is empty: name the host of Nova's metadata API")
    return UpstreamApp(
        [client.tcp_client(host, port, tls=tls) for host, port in hosts], max_body_bytes=conf.max_request_body
    )


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
        context = ssl.create_default_context(cafile=conf.auth_ca_cert or None)
        if conf.nova_client_cert:
            context.load_cert_chain(conf.nova_client_cert, conf.nova_client_priv_key or None)
    except (OSError, ssl.SSLError) as error:
        names = 'auth_ca_cert, nova_client_cert, nova_client_priv_key'
        raise ConfigError(f'{names}: cannot be used: {error}; each must be a readable PEM file') from error
    if conf.nova_metadata_insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
