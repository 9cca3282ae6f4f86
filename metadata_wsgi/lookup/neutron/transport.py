# SPDX-License-Identifier: Apache-2.0
"""Limits every request to Keystone and Neutron: to the deadline of the lookup, and to a maximum response size.

keystoneauth sends requests of its own (discovery, tokens) with a fixed timeout. The library ``requests`` applies a
timeout to each single read. So the caller sets the deadline around its call (``deadline_scope``). The adapter of this
module sends every request, and limits each connect and each read to the remaining time. At the deadline the adapter
also shuts the connection down. Otherwise a TLS handshake or a header that arrives byte by byte, each byte in time,
could take longer. Name resolution is limited too (``net.resolver``).

:func:`make_session` ignores the environment: no proxy (``http_proxy``, ``ALL_PROXY``), no ``~/.netrc``, no
``REQUESTS_CA_BUNDLE``. Keystone, Neutron and Nova are on the management network, where no proxy is needed. The CA
certificates are those of this machine (:func:`machine_ca_store`), not those of the package certifi.
"""

from __future__ import annotations

import _socket
import io
import os
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from types import TracebackType
from typing import Any

import requests
import urllib3
from keystoneauth1.session import TCPKeepAliveAdapter
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from metadata_wsgi import limits
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.net import resolver

MAX_RESPONSE_BYTES = 16 << 20
"""Largest response. A thousand ports with the fields of our queries are 0.4 MB."""
CHUNK_BYTES = 1 << 16

# One value for each thread and greenlet. keystoneauth cannot pass a deadline to its own request for a token.
_DEADLINE: ContextVar[Deadline] = ContextVar('metadata_wsgi.lookup.neutron.transport')


@contextmanager
def deadline_scope(deadline: Deadline) -> Iterator[None]:
    """Inside the block, every request of this thread (or greenlet) ends before ``deadline``."""
    previous = _DEADLINE.set(deadline)
    try:
        yield
    finally:
        _DEADLINE.reset(previous)


def make_session(connections: int) -> requests.Session:
    """Return a session with a pool of ``connections`` connections to each host."""
    session = requests.Session()
    session.trust_env = False
    for scheme in ('http://', 'https://'):
        session.mount(scheme, DeadlineAdapter(pool_maxsize=connections))
    return session


def machine_ca_store() -> str:
    """Path of this machine's CA certificates, a file or a directory: OpenSSL's default, as for Nova.

    The variables ``SSL_CERT_FILE`` and ``SSL_CERT_DIR`` replace this default. If the machine has no CA certificates,
    the path does not exist.
    """
    paths = ssl.get_default_verify_paths()
    return paths.cafile or paths.capath or paths.openssl_cafile


def describe(error: BaseException) -> str:
    """Return the text of the innermost cause of an error of ``requests`` or keystoneauth, on one line.

    The text contains host names and addresses, but no URLs, credentials or tokens.
    """
    *_, cause = _chain(error)
    text = ' '.join(str(cause).split())[:300] or type(cause).__name__
    if 'CERTIFICATE_VERIFY_FAILED' in text or isinstance(cause, ssl.SSLCertVerificationError):
        text += (
            '; set auth_ca_cert (or cafile in the section of the credentials) to the CA certificates; '
            'by default those of this machine are used'
        )
    return text


def is_without_connection(error: BaseException) -> bool:
    """Whether ``error``, of ``requests`` or keystoneauth, means that no connection could be made."""
    return any(isinstance(cause, NewConnectionError | ConnectTimeoutError) for cause in _chain(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """``error`` and its causes, the innermost last."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = _inner(cause)


def _inner(error: BaseException) -> BaseException | None:
    inner = getattr(error, 'reason', None)  # of urllib3's MaxRetryError
    if not isinstance(inner, BaseException):
        inner = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    # An error of another type is not the cause: it was already being handled when this error was raised.
    return inner if isinstance(inner, OSError | urllib3.exceptions.HTTPError) else None


class _Cutoff:
    """Shuts the connection of one request down at the deadline. A context manager around the request.

    ``waits_for`` is for the text of the error, for example "the response". ``has_ended``: the connection was shut down.
    """

    def __init__(self, deadline: Deadline) -> None:
        self.waits_for = ''
        self.has_ended = False
        self._is_over = False
        self._copy: _socket.socket | None = None
        self._lock = threading.Lock()
        # Under gevent the timer is a greenlet. Elsewhere it is a thread, in a program that sends few requests.
        self._timer = threading.Timer(_remaining_s(deadline), self._end)
        self._timer.daemon = True

    def watch(self, sock: socket.socket, waits_for: str) -> None:
        """Shut ``sock`` down at the deadline. Call this method when the connection is open."""
        self.waits_for = waits_for
        # A copy: the TLS library puts another object in the place of the socket.
        self._replace(_socket.socket(fileno=os.dup(sock.fileno())))
        if self._is_over:
            self._end()

    def __enter__(self) -> _Cutoff:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        self._replace(None)

    def _replace(self, copy: _socket.socket | None) -> None:
        with self._lock:
            former, self._copy = self._copy, copy
        if former is not None:
            former.close()

    def _end(self) -> None:
        with self._lock:
            self._is_over = True
            # Before there is a connection, name resolution and connect end at the deadline with an error of their own.
            if self._copy is not None:
                self.has_ended = True
                with suppress(OSError):
                    self._copy.shutdown(_socket.SHUT_RDWR)


_CUTOFF: ContextVar[_Cutoff] = ContextVar('metadata_wsgi.lookup.neutron.cutoff')


class _ConnectionMixin:
    """Opens the connection to Neutron or Keystone with this package's resolver.

    A connection attempt takes at most ``limits.CONNECT_TIMEOUT_S``, and ends at the deadline at the latest.
    """

    def request(self: Any, *args: Any, **kwargs: Any) -> None:
        """Called by urllib3 to send a request. The connection may be open already."""
        if self.sock is not None:
            _CUTOFF.get().watch(self.sock, 'the response')
        super().request(*args, **kwargs)  # type: ignore[misc]

    def _new_conn(self: Any) -> socket.socket:
        try:
            timeout_s = min(limits.CONNECT_TIMEOUT_S, _remaining_s(_DEADLINE.get()))
            sock: socket.socket = resolver.SHARED.connect(self._dns_host, self.port, timeout_s)
        except OSError as error:
            reason = OSError(f'no connection to {self.host} port {self.port}: {error.strerror or error}')
            kind = ConnectTimeoutError if isinstance(error, TimeoutError) else NewConnectionError
            raise kind(self, str(reason)) from reason
        for option in self.socket_options or ():
            sock.setsockopt(*option)
        sock.settimeout(_remaining_s(_DEADLINE.get()))
        _CUTOFF.get().watch(sock, self._next_wait)
        return sock


class _HttpConnection(_ConnectionMixin, urllib3.connection.HTTPConnection):
    _next_wait = 'the response'


class _HttpsConnection(_ConnectionMixin, urllib3.connection.HTTPSConnection):
    _next_wait = 'the TLS handshake'


class _HttpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _HttpConnection


class _HttpsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _HttpsConnection


class DeadlineAdapter(TCPKeepAliveAdapter):
    """Sends requests within the deadline of ``deadline_scope``. Reads the whole response before it returns."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Called by ``requests``. Makes the pools use the connection classes of this module."""
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {'http': _HttpPool, 'https': _HttpsPool}

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: bool | str = True,
        cert: Any = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Send ``request``. Raises the exceptions of ``requests``; at the deadline raises ReadTimeout.

        The arguments ``stream`` and ``timeout`` are ignored.
        """
        deadline = _DEADLINE.get()
        if isinstance(verify, str) and not os.path.exists(verify) and (request.url or '').startswith('https:'):
            # requests would raise OSError, which keystoneauth does not handle.
            raise requests.exceptions.SSLError(
                f'there are no CA certificates at {verify}; set auth_ca_cert to a file of CA certificates',
                request=request,
            )
        with _Cutoff(deadline) as cutoff:
            token = _CUTOFF.set(cutoff)
            try:
                response: requests.Response = super().send(
                    request, stream=True, timeout=_remaining_s(deadline), verify=verify, cert=cert, proxies=proxies
                )
                response.raw = io.BytesIO(_read_body(response.raw, deadline))
            except (urllib3.exceptions.HTTPError, requests.exceptions.RequestException) as error:
                # The socket times out at the same moment as the cutoff. The text must not depend on which is first.
                is_timeout = isinstance(error, urllib3.exceptions.TimeoutError | requests.exceptions.Timeout)
                if cutoff.has_ended or (is_timeout and cutoff.waits_for):
                    raise _timeout(cutoff, request) from None
                if isinstance(error, requests.exceptions.RequestException):
                    raise
                raise requests.exceptions.ConnectionError(error, request=request) from error
            finally:
                _CUTOFF.reset(token)
            if cutoff.has_ended:
                # A body without a length ends where the connection does.
                raise _timeout(cutoff, request)
            return response


def _timeout(cutoff: _Cutoff, request: requests.PreparedRequest) -> requests.exceptions.ReadTimeout:
    return requests.exceptions.ReadTimeout(f'{cutoff.waits_for} was not complete in time', request=request)


def _remaining_s(deadline: Deadline) -> float:
    remaining_s = deadline.remaining_s()
    if not remaining_s:
        raise requests.exceptions.ReadTimeout('the deadline passed')
    return remaining_s


def _read_body(raw: urllib3.response.BaseHTTPResponse, deadline: Deadline) -> bytes:
    """Read the whole body. If this fails, the connection is closed and not reused."""
    chunks: list[bytes] = []
    length = 0
    try:
        while True:
            sock = getattr(raw.connection, 'sock', None)
            if sock is not None:
                sock.settimeout(_remaining_s(deadline))
            chunk = raw.read1(CHUNK_BYTES, decode_content=True)
            if not chunk:
                return b''.join(chunks)
            _remaining_s(deadline)
            chunks.append(chunk)
            length += len(chunk)
            if length > MAX_RESPONSE_BYTES:
                raise requests.exceptions.ConnectionError(f'the response is longer than {MAX_RESPONSE_BYTES} bytes')
    except BaseException:
        raw.close()
        raise
