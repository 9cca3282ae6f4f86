# SPDX-License-Identifier: Apache-2.0
"""Sends the signed request to Nova's metadata API and returns the response. The app at the end of the pipeline.

The app sends the method, raw target and body of the client's request unchanged. Of the client's headers it sends only
those in ``header_names.UPSTREAM_ALLOWED``, because other headers could have a meaning for Nova. The app adds the
headers by which Nova identifies the instance, from SIGNED_IDENTITY. It also adds the id of the request
(``X-Openstack-Request-Id``), and a valid ``traceparent`` of the client. Nova's status, end-to-end headers and body are
returned unchanged. Redirects are not followed.

A GET or HEAD is retried until the deadline if Nova is unreachable, does not respond, or responds 500, 502, 503 or 504.
At the deadline the client gets Nova's last response, or 503 if there was none. A POST (the password) is retried only if
Nova cannot have received it, and is not sent if the namespace proxy has closed the connection (CLIENT_HAS_CLOSED): its
client has then got 503, and repeats the request. All requests of a worker share a retry budget. While a host accepts no
connections, only one request at a time tries to connect to it. So the retries of many clients do not overload a failing
Nova.

While the shared secret is being changed there are two signatures. If Nova rejects one signature (403), the app sends
the request again with the other signature. A POST is sent again too, because a rejected request has no effect. Later
requests are first sent with the signature that Nova accepted last.

``nova_metadata_host`` may name several hosts, separated by commas, each with its own port if needed
(``nova1,nova2:8776,[2001:db8::1]:8775``). A request is sent to the first host. If this host fails, the request is sent
to the next one. For ``limits.NOVA_HOST_BACKOFF_S`` seconds after a failure, a host stands last in the order. The app
reads DEADLINE and SIGNED_IDENTITY, and REQUEST_ID if it is set.
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
from metadata_wsgi.deadline import Deadline, sleep
from metadata_wsgi.errors import BadRequest, ConfigError, NoResponse, NotSent
from metadata_wsgi.http import client, header_names, message, trace_context
from metadata_wsgi.http.client import HttpClient
from metadata_wsgi.http.proxy_errors import ProxyErrors
from metadata_wsgi.http.retry import RetryBudget, retry_until
from metadata_wsgi.nova_proxy.hosts import RETRYABLE_STATUSES, Hosts
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
        help="Host of Nova's metadata API. Several hosts, separated by commas, are tried in order.",
    ),
    cfg.PortOpt('nova_metadata_port', default=8775, help="TCP port of Nova's metadata API."),
    cfg.StrOpt(
        'nova_metadata_protocol',
        default='http',
        choices=['http', 'https'],
        help="Protocol of Nova's metadata API.",
    ),
    cfg.BoolOpt('nova_metadata_insecure', default=False, help='Accept any certificate of Nova. For tests only.'),
    cfg.StrOpt('nova_client_cert', default='', help='Client certificate for Nova, a PEM file.'),
    cfg.StrOpt('nova_client_priv_key', default='', help='Private key of the client certificate, a PEM file.'),
    cfg.IntOpt(
        'max_request_body',
        default=limits.MAX_REQUEST_BODY_BYTES,
        min=1020,
        help='Largest request body in bytes. A request with a larger body gets 413.',
    ),
]

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
"""Paths that Nova has for every instance. cloud-init, Ignition and CirrOS first request one of them."""


class UpstreamApp:
    """Sends each request to one of ``clients``, with retries."""

    REQUIRES = frozenset({environ_keys.DEADLINE, environ_keys.SIGNED_IDENTITY})
    PROVIDES: frozenset[str] = frozenset()

    def __init__(
        self,
        clients: Sequence[HttpClient],
        *,
        max_body_bytes: int = limits.MAX_REQUEST_BODY_BYTES,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = sleep,
    ) -> None:
        self.clients = tuple(clients)
        self._max_body_bytes = max_body_bytes
        self._sleep = sleep
        self._hosts = Hosts(self.clients, clock)
        self._retry_budget = RetryBudget(clock)
        # Index in ``signatures`` of the signature that Nova accepted last.
        self._accepted_signature = 0
        self._refused_log = Throttle(limits.LOG_INTERVAL_S)
        # Whether Nova has sent a 200 since the worker started, and the number of 404s before the first 200.
        self._has_known_an_instance = False
        self._unknown_instances = 0
        self._unknown_log = Throttle(limits.UNKNOWN_INSTANCES_LOG_INTERVAL_S)
        self._secret_change_log = Throttle(limits.SECRET_CHANGE_LOG_INTERVAL_S)
        self._errors = ProxyErrors('Nova', max_body_bytes=max_body_bytes)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Send Nova's response to the client, 503 if there is none; 400, 408 or 413 if the request is at fault."""
        identity: environ_keys.SignedIdentity = environ[environ_keys.SIGNED_IDENTITY]
        deadline: Deadline = environ[environ_keys.DEADLINE]
        has_closed = environ.get(environ_keys.CLIENT_HAS_CLOSED, _is_open)
        try:
            response = self._send_signed(self._request(environ, identity, deadline), identity, deadline, has_closed)
        except (BadRequest, NoResponse) as error:
            status, reason, answer = self._errors.response(error)
            if reason:
                environ[environ_keys.FAILURE] = environ_keys.Failure(status, reason)
            return answer(environ, start_response)
        path = environ.get('PATH_INFO', '')
        self._check_status(response.status, path)
        if reason := _failure_reason(response.status, path):
            environ[environ_keys.FAILURE] = environ_keys.Failure(response.status, reason)
        return response(environ, start_response)

    def _check_status(self, status: int, path: str) -> None:
        """Log an error if the status shows that Nova's configuration is wrong."""
        if status == 403 and self._refused_log.allow():
            LOG.error(
                'Nova rejects the signature (403): compare metadata_proxy_shared_secret here with '
                '[neutron] metadata_proxy_shared_secret in nova.conf; they must be the same'
            )
        if status == 200:
            self._has_known_an_instance = True
        elif status == 404 and not self._has_known_an_instance and path.rstrip('/') in PATHS_OF_EVERY_INSTANCE:
            self._unknown_instances += 1
            if self._unknown_instances >= limits.UNKNOWN_INSTANCES_WARNING and self._unknown_log.allow():
                LOG.warning(
                    'Nova has sent %d times 404 and never 200, for instances that the lookup has found: '
                    'if [neutron] service_metadata_proxy is false or misspelt in nova.conf, Nova ignores '
                    'the signature and sends 404 to every instance',
                    self._unknown_instances,
                )

    def _request(
        self, environ: WSGIEnvironment, identity: environ_keys.SignedIdentity, deadline: Deadline
    ) -> message.Request:
        """The request to Nova, with the signature that Nova accepted last."""
        headers = message.headers(environ, header_names.upstream_name)
        if environ_keys.REQUEST_ID in environ:
            headers.append((header_names.REQUEST_ID, environ[environ_keys.REQUEST_ID]))
        if 'HTTP_TRACEPARENT' in environ and trace_context.is_valid(environ['HTTP_TRACEPARENT']):
            headers.append((header_names.TRACEPARENT, environ['HTTP_TRACEPARENT']))
        headers += identity_headers(identity, identity.signatures[self._first_signature(identity)])
        content = message.body(environ, self._max_body_bytes, deadline)
        return message.Request(environ['REQUEST_METHOD'], message.target(environ), headers, content)

    def _first_signature(self, identity: environ_keys.SignedIdentity) -> int:
        return self._accepted_signature if len(identity.signatures) > 1 else 0

    def _send_signed(
        self,
        request: message.Request,
        identity: environ_keys.SignedIdentity,
        deadline: Deadline,
        client_has_closed: Callable[[], bool],
    ) -> message.Response:
        """Send the request. If there are two signatures and Nova responds 403, send it with the other signature.

        If Nova responds 403 again, send it with the first signature once more.
        """
        response = self._send_until(request, deadline, client_has_closed)
        if response.status != 403 or len(identity.signatures) == 1:
            return response
        first = self._first_signature(identity)
        # The first signature is tried again at the end, because Nova's secret may change between two attempts.
        for number in (1 - first, first):
            if hasattr(response.body, 'close'):
                response.body.close()
            headers = [*request.headers[:-1], (header_names.SIGNATURE, identity.signatures[number])]
            signed = message.Request(request.method, request.target, headers, request.body)
            response = self._send_until(signed, deadline, client_has_closed)
            if response.status != 403:
                self._set_accepted_signature(number)
                break
        return response

    def _set_accepted_signature(self, number: int) -> None:
        if number != self._accepted_signature and self._secret_change_log.allow():
            LOG.info('Nova now accepts the %s shared secret', 'old' if number else 'new')
        self._accepted_signature = number

    def _send_until(
        self, request: message.Request, deadline: Deadline, client_has_closed: Callable[[], bool]
    ) -> message.Response:
        def attempt() -> message.Response:
            if not request.is_retryable and client_has_closed():
                raise BadRequest('The client has closed its connection.')
            return self._hosts.send_request(request, deadline)

        self._retry_budget.add_request()
        response = retry_until(
            attempt,
            deadline,
            service='nova',
            retry_on=(NoResponse,) if request.is_retryable else (NotSent,),
            retry_if_result=lambda response: response.status in RETRYABLE_STATUSES and request.is_retryable,
            may_retry=lambda: self._hosts.allows_attempt(request, deadline) and self._retry_budget.take_retry(),
            sleep=self._sleep,
        )
        if response.status not in RETRYABLE_STATUSES:
            self._retry_budget.add_success()
        return response


def _is_open() -> bool:
    """For a server that does not set CLIENT_HAS_CLOSED."""
    return False


def _failure_reason(status: int, path: str) -> str:
    """The reason for a status of Nova that shows a failure, else ''. Clients try many paths, so 404 is usual."""
    if status in RETRYABLE_STATUSES:
        return f'Nova responded {status} until the deadline'
    if status == 403:
        return 'Nova refuses the signature: compare the shared secrets'
    if status == 404 and path.rstrip('/') in PATHS_OF_EVERY_INSTANCE:
        return 'Nova does not know the instance, or its port belongs to another project, or Nova ignores signatures'
    return ''


def identity_headers(identity: environ_keys.SignedIdentity, signature: str) -> message.Headers:
    """The headers by which Nova identifies the instance. A client's headers with these names are never sent to Nova."""
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
    """Parse ``host``, ``host:port``, ``[IPv6]:port`` or an IPv6 address without brackets. Raises ConfigError."""
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
