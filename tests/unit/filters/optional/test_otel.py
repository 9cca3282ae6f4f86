# SPDX-License-Identifier: Apache-2.0
"""With the SDK's exporter that keeps spans in memory."""

import threading

import pytest
import webtest

from metadata_wsgi.errors import ConfigError
from metadata_wsgi.filters.optional import otel
from metadata_wsgi.filters.request_id import RequestIdFilter
from metadata_wsgi.pipeline import environ_keys, order

export = pytest.importorskip('opentelemetry.sdk.trace.export')
from opentelemetry.sdk.trace import TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: E402

TRACE, SPAN = '4bf92f3577b34da6a3ce929d0e0e4736', '00f067aa0ba902b7'
CLIENT = f'00-{TRACE}-{SPAN}-01'


class SourceFilter:
    REQUIRES = frozenset()
    PROVIDES = frozenset({environ_keys.SOURCE})

    def __init__(self, app):
        self.app = app

    def __call__(self, environ, start_response):
        environ[environ_keys.SOURCE] = environ_keys.Source('10.1.1.2', router_id='r1')
        return self.app(environ, start_response)


class Nova:
    """The app at the end. ``status`` None: it raises."""

    REQUIRES = frozenset({environ_keys.SOURCE})
    PROVIDES = frozenset()

    def __init__(self, status):
        self.seen, self._status = [], status

    def __call__(self, environ, start_response):
        self.seen.append(environ.get('HTTP_TRACEPARENT'))
        if self._status is None:
            raise ValueError('a secret text')
        start_response(self._status, [('Content-Type', 'text/plain')])
        return [b'']


@pytest.fixture
def traced():
    """(status, **options) -> function that sends a request and returns (spans by name, traceparent at Nova)."""

    def make(status='200 OK', **options):
        exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(export.SimpleSpanProcessor(exporter))
        nova = Nova(status)
        pipeline = RequestIdFilter(
            otel.OtelFilter(SourceFilter(nova), tracer=lambda: provider.get_tracer('test'), **options)
        )

        def send(path='/openstack?q=1', **headers):
            exporter.clear()
            if status is None:
                with pytest.raises(ValueError):
                    webtest.TestApp(pipeline).get(path, headers=headers)
            else:
                webtest.TestApp(pipeline).get(path, headers=headers, expect_errors=True)
            return {span.name: span for span in exporter.get_finished_spans()}, nova.seen[-1]

        return send

    return make


def names(spans):
    return [name.rpartition('.')[2] for name in spans]


def test_one_span_for_each_filter_nested_as_the_filters_are(traced):
    spans, _ = traced()()
    assert names(spans) == ['Nova', 'SourceFilter', 'GET']
    nova, source, first = spans.values()
    assert (nova.parent.span_id, source.parent.span_id) == (source.context.span_id, first.context.span_id)
    assert first.parent is None
    assert len({span.context.trace_id for span in spans.values()}) == 1


def test_further_requests_have_the_same_spans(traced):
    send = traced()
    assert [len(send()[0]) for _ in range(3)] == [3, 3, 3]


def test_the_first_span_has_what_identifies_the_request(traced):
    spans, _ = traced()(**{'X-Openstack-Request-Id': 'req-1b4e28ba-2fa1-11d2-883f-0016d3cca427', 'Cookie': 'secret'})
    assert dict(spans['GET'].attributes) == {
        'http.request.method': 'GET', 'url.path': '/openstack', 'http.response.status_code': 200,
        'metadata_wsgi.request_id': 'req-1b4e28ba-2fa1-11d2-883f-0016d3cca427',
        'client.address': '10.1.1.2', 'metadata_wsgi.router_id': 'r1',
    }  # fmt: skip


def test_nova_gets_the_traceparent_of_the_last_span(traced):
    spans, traceparent = traced()()
    nova = next(span for name, span in spans.items() if name.endswith('Nova'))
    assert traceparent.startswith(f'00-{nova.context.trace_id:032x}-{nova.context.span_id:016x}-')


def test_the_traceparent_of_a_client_is_a_link_and_not_the_parent(traced):
    spans, traceparent = traced()(traceparent=CLIENT)
    first = spans['GET']
    assert first.parent is None
    assert [f'{link.context.trace_id:032x}' for link in first.links] == [TRACE]
    assert TRACE not in traceparent


def test_the_traceparent_of_a_trusted_client_is_the_parent(traced):
    spans, traceparent = traced(trusts_client=True)(traceparent=CLIENT)
    first = spans['GET']
    assert (f'{first.parent.span_id:016x}', f'{first.context.trace_id:032x}', first.links) == (SPAN, TRACE, ())
    assert TRACE in traceparent


@pytest.mark.parametrize('trusts_client', [False, True])
@pytest.mark.parametrize('traceparent', ['x', f'00-{"0" * 32}-{SPAN}-01', CLIENT + ',' + CLIENT])
def test_an_invalid_traceparent_is_ignored(traced, traceparent, trusts_client):
    spans, _ = traced(trusts_client=trusts_client)(traceparent=traceparent)
    assert (spans['GET'].parent, spans['GET'].links) == (None, ())


@pytest.mark.parametrize(('status', 'is_error'), [('404 No', False), ('501 No', False), ('503 No', True), (None, True)])
def test_a_failure_is_an_error_without_its_text(traced, status, is_error):
    spans, _ = traced(status)()
    assert (spans['GET'].status.status_code.name == 'ERROR') == is_error
    assert not any(span.events or span.status.description for span in spans.values())


def test_concurrent_first_requests_wrap_the_filters_once():
    """The SDK starts a thread. Under gevent other requests run meanwhile."""
    provider, entered, second_entered = TracerProvider(), [], threading.Event()

    def send():
        webtest.TestApp(pipeline).get('/')

    def make_tracer():
        entered.append(threading.get_ident())
        if len(entered) > 1:
            second_entered.set()
        else:
            second.start()
            second_entered.wait(0.2)
        return provider.get_tracer('test')

    pipeline = otel.OtelFilter(SourceFilter(Nova('200 OK')), tracer=make_tracer)
    second = threading.Thread(target=send)
    send()
    second.join(20)
    assert len(entered) == 1
    assert names(type(link).__name__ for link in order.chain(pipeline)) == [
        'OtelFilter', 'SpannedApp', 'SourceFilter', 'SpannedApp', 'Nova',
    ]  # fmt: skip


def test_nothing_is_wrapped_before_the_first_request():
    nova = Nova('200 OK')
    pipeline = otel.OtelFilter(SourceFilter(nova), tracer=lambda: None)
    assert [type(link) for link in order.chain(pipeline)] == [otel.OtelFilter, SourceFilter, Nova]


def test_without_the_library_the_start_is_refused(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__('sys').modules, 'opentelemetry.sdk.trace.export', None)
    path = tmp_path / 'agent.ini'
    path.write_text('')
    with pytest.raises(ConfigError, match=r'which is not installed: pip install metadata_wsgi\[otel\]'):
        otel.filter_factory({'config_file': str(path)})
