# SPDX-License-Identifier: Apache-2.0
"""OpenTelemetry: one trace for each request, with a span for each filter and for the app at the end. Off by default.

The filter needs the libraries of the extra ``otel`` (``pip install metadata_wsgi[otel]``). The span of a filter
contains the span of the next filter. So the time of ``instance`` minus the time of ``signature`` is the time of the
lookup. The first span has the method, path and status of the request, its request id, and the ids of instance, router
and network. No span has a header, a query, a body or the text of an exception.

The environment variables of OpenTelemetry's SDK configure the filter, for example in the systemd unit of the agent::

    OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318
    OTEL_TRACES_SAMPLER=parentbased_traceidratio
    OTEL_TRACES_SAMPLER_ARG=0.01

Nova gets the ``traceparent`` of the last span. If a client sends a ``traceparent``, our trace only has a link to the
client's span. If that span were the parent, an instance could decide that its requests are sampled, and add spans to
traces of others.
With ``trust_client_traceparent`` the client's span is the parent.

The filter must be after ``request_id``. At the first request it wraps each later filter in a span. Without this filter
in the pipeline, nothing is wrapped and no library of OpenTelemetry is imported. The filter reads REQUEST_ID, SOURCE and
INSTANCE, if they are set.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from oslo_config import cfg

from metadata_wsgi.config import config_files
from metadata_wsgi.errors import ConfigError
from metadata_wsgi.http import header_names, trace_context
from metadata_wsgi.pipeline import environ_keys, order
from metadata_wsgi.pipeline.outcome import StatusRecorder

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

GROUP = 'otel'
OPTS = [
    cfg.BoolOpt(
        'trust_client_traceparent',
        default=False,
        help="For the filter otel: continue the client's trace, instead of starting a new trace with a link to it. Set "
        'this option only if instances are trusted: they then decide which of their requests are sampled.',
    ),
]

SERVICE_NAME = 'metadata-wsgi-agent'
"""The service name in traces, if neither OTEL_SERVICE_NAME nor OTEL_RESOURCE_ATTRIBUTES sets one."""

MAX_PATH_LENGTH = 200
_TRACEPARENT_KEY = header_names.environ_key(header_names.TRACEPARENT)


class OtelFilter:
    """Starts the first span, and wraps each later filter in a span. ``tracer`` is called at the first request."""

    REQUIRES: frozenset[str] = frozenset()
    PROVIDES: frozenset[str] = frozenset()

    def __init__(self, app: WSGIApplication, *, tracer: Callable[[], Any], trusts_client: bool = False) -> None:
        self.app = app
        self._make_tracer = tracer
        self._tracer: Any = None
        self._start_lock = threading.Lock()
        self._trusts_client = trusts_client

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Call the next filter in the first span of the request."""
        from opentelemetry import trace

        if self._tracer is None:
            self._start()
        recorder = StatusRecorder(start_response)
        with self._tracer.start_as_current_span(
            environ['REQUEST_METHOD'],
            kind=trace.SpanKind.SERVER,
            record_exception=False,
            set_status_on_exception=False,
            **self._origin(environ.get(_TRACEPARENT_KEY, '')),
        ) as span:
            try:
                return self.app(environ, recorder)
            finally:
                if span.is_recording():
                    span.set_attributes(_attributes(environ, recorder.status))
                    if recorder.status in ('', '500') or recorder.status >= '502':
                        span.set_status(trace.StatusCode.ERROR)

    def _start(self) -> None:
        """Make the tracer and wrap the filters, once. Concurrent requests wait."""
        with self._start_lock:
            if self._tracer is None:
                # The SDK starts a thread here. Under gevent other requests run meanwhile.
                tracer = self._make_tracer()
                self.app = _spanned(self.app, tracer)
                # Last: a request that finds a tracer also finds the wrapped filters.
                self._tracer = tracer

    def _origin(self, traceparent: str) -> dict[str, Any]:
        """Arguments for the first span: its parent or link. Without a valid ``traceparent`` the span has neither."""
        from opentelemetry import trace
        from opentelemetry.context import Context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        if not trace_context.is_valid(traceparent):
            return {'context': Context()}
        parent = TraceContextTextMapPropagator().extract({header_names.TRACEPARENT: traceparent}, Context())
        if self._trusts_client:
            return {'context': parent}
        return {'context': Context(), 'links': [trace.Link(trace.get_current_span(parent).get_span_context())]}


class SpannedApp:
    """Wraps ``app``, a filter or the app at the end, in a span with its name."""

    REQUIRES: frozenset[str] = frozenset()
    PROVIDES: frozenset[str] = frozenset()

    def __init__(self, app: WSGIApplication, tracer: Any, *, is_last: bool) -> None:
        self.app = app
        self._tracer = tracer
        self._name = order.name(app)
        self._is_last = is_last

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Call the app in a span. The span ends when the app returns."""
        with self._tracer.start_as_current_span(self._name, record_exception=False, set_status_on_exception=False):
            if self._is_last:
                _set_traceparent(environ)
            return self.app(environ, start_response)


def _spanned(app: WSGIApplication, tracer: Any) -> WSGIApplication:
    links = order.chain(app)
    for link in links[:-1]:
        for attribute in order.INNER_ATTRIBUTES:
            if callable(inner := getattr(link, attribute, None)):
                setattr(link, attribute, SpannedApp(inner, tracer, is_last=inner is links[-1]))
                break
    return SpannedApp(app, tracer, is_last=len(links) == 1)


def _set_traceparent(environ: WSGIEnvironment) -> None:
    """Set the ``traceparent`` for Nova to the current span, so that Nova's spans are its children."""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    if header_names.TRACEPARENT in carrier:
        environ[_TRACEPARENT_KEY] = carrier[header_names.TRACEPARENT]


def _attributes(environ: WSGIEnvironment, status: str) -> dict[str, Any]:
    """The attributes, by OpenTelemetry's conventions for HTTP servers. Our own attributes have a prefix."""
    found: dict[str, Any] = {
        'http.request.method': environ['REQUEST_METHOD'],
        'url.path': environ.get('PATH_INFO', '')[:MAX_PATH_LENGTH],
    }
    if status:
        found['http.response.status_code'] = int(status)
    if environ_keys.REQUEST_ID in environ:
        found[environ_keys.REQUEST_ID] = environ[environ_keys.REQUEST_ID]
    source: environ_keys.Source | None = environ.get(environ_keys.SOURCE)
    if source:
        kind, id_ = ('router', source.router_id) if source.router_id else ('network', source.network_id)
        found |= {'client.address': source.address, f'metadata_wsgi.{kind}_id': id_ or ''}
    instance: environ_keys.Instance | None = environ.get(environ_keys.INSTANCE)
    if instance:
        found |= {'metadata_wsgi.instance_id': instance.instance_id, 'metadata_wsgi.project_id': instance.project_id}
    return found


def _tracer(exporter: Any, resource: Any) -> Any:
    """A tracer. If no SDK is set up yet (by ``opentelemetry-instrument``), set one up that uses ``exporter``."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        provider = TracerProvider(resource=resource)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        trace.set_tracer_provider(provider)
    return trace.get_tracer('metadata_wsgi')


def filter_factory(global_conf: Mapping[str, str]) -> Callable[[WSGIApplication], OtelFilter]:
    """For ``use = egg:metadata_wsgi#otel``."""
    conf = config_files.load(global_conf, OPTS, GROUP).otel
    try:
        # Imported now and not at the first request, because the worker's user may have no access to Python's directory.
        import opentelemetry.sdk.trace.export  # noqa: F401
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
    except ImportError as error:
        raise ConfigError(
            f'the filter otel needs {error.name}, which is not installed: pip install metadata_wsgi[otel]'
        ) from error
    exporter = OTLPSpanExporter()
    is_named = 'OTEL_SERVICE_NAME' in os.environ or 'service.name=' in os.environ.get('OTEL_RESOURCE_ATTRIBUTES', '')
    resource = Resource.create({} if is_named else {'service.name': SERVICE_NAME})
    return lambda app: OtelFilter(
        app, tracer=lambda: _tracer(exporter, resource), trusts_client=conf.trust_client_traceparent
    )
