# SPDX-License-Identifier: Apache-2.0
"""The shipped paste file with an optional filter in its pipelines, where its comment places it."""

import time

import pytest
import webtest

from metadata_wsgi import limits
from metadata_wsgi.cache.process_shared import SharedPause
from metadata_wsgi.cli import agent
from metadata_wsgi.errors import ConfigError
from metadata_wsgi.pipeline import environ_keys, order, paste_loader
from tests.cloud import SHIPPED, Cloud

A = {'X-Forwarded-For': '10.1.1.2', 'X-Quantum-Router-ID': 'router-a'}
B = {'X-Forwarded-For': '10.1.1.2', 'X-Quantum-Router-ID': 'router-b'}
KEY = 'k' * 32
TTL, TOKEN = 'X-aws-ec2-metadata-token-ttl-seconds', 'X-aws-ec2-metadata-token'


@pytest.fixture
def cloud(tmp_path):
    with Cloud(tmp_path) as made:
        yield made


@pytest.fixture
def load(cloud, tmp_path):
    """Loads ``agent`` (or another pipeline) with ``filters`` after the filter ``after``, and more options."""

    def with_(filters, options='', after='instance', name='agent', more=lambda text: text):
        text = SHIPPED.read_text().replace(f' {after} ', f' {after} {filters} ')
        path = tmp_path / 'api-paste.ini'
        path.write_text(more(text))
        cloud.conf_file.write_text(cloud.conf_file.read_text() + options)
        return webtest.TestApp(paste_loader.load(str(path), name, {'config_file': str(cloud.conf_file)}))

    return with_


@pytest.mark.parametrize('after', ['instance', 'header_source'])
def test_rate_limit_passes_boots_and_stops_loops(load, cloud, after, monkeypatch):
    # The windows of the counters begin with the minutes of the clock. None may begin between two of the requests.
    now_s = time.time() // 60 * 60 + 30
    monkeypatch.setattr(time, 'time', lambda: now_s)
    app = load('rate_limit', '[rate_limit]\nboots_per_minute = 2\n', after)
    statuses = [app.get('/', headers=A, expect_errors=True).status_int for _ in range(60)]
    assert statuses == [200] * 56 + [429] * 4
    assert int(app.get('/', headers=A, status=429).headers['Retry-After']) >= 1
    assert app.get('/', headers=B).json['uuid'] == 'instance-b'
    assert len(cloud.nova.seen) == 57


def test_rate_limit_before_the_source_is_refused(load):
    with pytest.raises(ConfigError, match='put header_source before rate_limit'):
        load('rate_limit', after='deadline')


def test_rate_limit_with_an_unavailable_store_passes_all_requests(load, caplog):
    app = load('rate_limit', '[rate_limit]\nboots_per_minute = 2\nstorage_url = redis://127.0.0.1:1\n')
    assert {app.get('/', headers=A).status_int for _ in range(60)} == {200}
    assert [record.getMessage() for record in caplog.records if 'rate_limit' in record.name] == [
        'The store of rate_limit is unavailable, so all requests pass: ConnectionError'
    ]


def test_session_token_is_issued_and_accepted(load, cloud):
    app = load('session_token', f'[session_token]\nkeys = {KEY}\nrequired = true\n')
    app.get('/', headers=A, status=401)
    given = app.put('/latest/api/token', headers={**A, TTL: '60'})
    assert app.get('/', headers={**A, TOKEN: given.text}).json['uuid'] == 'instance-a'
    app.get('/', headers={**B, TOKEN: given.text}, status=401)
    app.put('/latest/api/token', headers={**A, TTL: '60', 'X-Metadata-Guest-Forwarded': '1'}, status=403)
    assert [key for key in cloud.nova.seen[0] if 'TOKEN' in key] == []
    assert len(cloud.nova.seen) == 1


def test_session_token_in_one_hop_is_not_issued_to_a_proxy(load):
    app = load('session_token', f'[session_token]\nkeys = {KEY}\n', name='one_hop')
    came = {environ_keys.NAMESPACE: environ_keys.Namespace(router_id='router-a'), 'REMOTE_ADDR': '10.1.1.2'}
    token = app.put('/latest/api/token', headers={TTL: '60'}, extra_environ=came).text
    app.get('/', headers={TOKEN: token}, extra_environ=came, status=200)
    app.get('/', headers={TOKEN: token[:-2]}, extra_environ=came, status=401)
    app.put('/latest/api/token', headers={TTL: '60', 'X-Forwarded-For': '1.2.3.4'}, extra_environ=came, status=403)


def test_session_token_without_a_key_stops_the_start(load):
    with pytest.raises(ConfigError, match=r'keys is missing from \[session_token\]'):
        load('session_token')


def test_path_policy_hides_user_data_an_hour_after_the_port_was_created(load, cloud):
    inventory = cloud.conf_file.parent / 'inventory.yaml'
    inventory.write_text(
        inventory.read_text().replace('instance: instance-b,', 'instance: instance-b, created_at: 2999-01-01,')
    )
    app = load('path_policy', '[path_policy]\nrule = hide GET /openstack/*/user_data after 60\n')
    app.get('/openstack/latest//user%5fdata/', headers=A, status=404)
    assert app.get('/openstack/latest/user_data', headers=B).json['uuid'] == 'instance-b'
    assert app.get('/openstack/latest/meta_data.json', headers=A).json['uuid'] == 'instance-a'
    assert len(cloud.nova.seen) == 2


@pytest.mark.parametrize('name', ['session_token', 'path_policy'])
def test_filters_that_read_the_instance_are_refused_before_it(load, name):
    with pytest.raises(ConfigError, match=f'put instance before {name}'):
        load(name, f'[session_token]\nkeys = {KEY}\n', after='header_source')


def test_all_optional_filters_together(load):
    app = load(
        'rate_limit session_token path_policy', f'[session_token]\nkeys = {KEY}\n[path_policy]\nrule = hide * /x\n'
    )
    app.get('/x', headers=A, status=404)
    app.get('/y', headers=A, status=200)


def test_healthcheck_responds_to_the_host_only(load, cloud):
    app = load('healthcheck', after='catch_errors')
    assert app.get('/healthcheck').text == 'OK\ndirectory: not used lately\nnova: not used lately\n'
    assert app.get('/healthcheck', headers=A).json['path'] == '/healthcheck'
    app.get('/', headers={**A, 'X-Forwarded-For': '10.1.1.77'}, status=404)
    assert [line.partition(',')[0] for line in app.get('/healthcheck', status=200).text.splitlines()] == [
        'OK',
        'directory: reachable',
        'nova: reachable',
    ]
    cloud.server.server_close()
    app.get('/', headers={**A, 'X-Metadata-Remaining-Ms': '200'}, status=503)
    app.get('/healthcheck', status=200)
    app.get('/', headers={**A, 'X-Metadata-Remaining-Ms': '1000'}, status=503)
    failed = app.get('/healthcheck', status=503)
    assert failed.text.startswith('NOVA NOT REACHABLE\ndirectory: reachable')
    assert 'nova: not reachable' in failed.text
    # Liveness does not depend on Nova: a restart of the agent would not repair it.
    assert app.get('/healthcheck/live', status=200).text.startswith('OK\n')
    assert app.get('/healthcheck/live', headers=A, status=503).text != 'OK'


def test_healthcheck_has_the_results_of_instances_in_mode_one_hop(load, cloud, tmp_path):
    load('healthcheck', after='request_id')
    default = f'[DEFAULT]\nmetadata_paste_config = {tmp_path}/api-paste.ini\n'
    cloud.conf_file.write_text(cloud.conf_file.read_text().replace('[DEFAULT]\n', default))
    app = webtest.TestApp(agent._application({'config_file': str(cloud.conf_file)}, SharedPause(), one_hop=True))
    monitor = {'X-Openstack-Request-Id': 'req-1b4e28ba-2fa1-11d2-883f-0016d3cca427'}
    assert 'nova: not used lately' in app.get('/healthcheck', headers=monitor).text
    instance = {environ_keys.NAMESPACE: environ_keys.Namespace(router_id='router-a'), 'REMOTE_ADDR': '10.1.1.2'}
    deadline_s = time.monotonic() - limits.REQUEST_TIMEOUT_S + limits.CIRCUIT_MIN_TIME_S + 2.0
    cloud.server.server_close()
    app.get('/', extra_environ={**instance, environ_keys.RECEIVED_AT_S: deadline_s}, status=503)
    assert app.get('/healthcheck', headers=monitor, status=503).text.startswith('NOVA NOT REACHABLE\n')


@pytest.mark.parametrize('after', ['catch_errors', 'request_id'])
def test_healthcheck_with_a_file_drains_the_node_and_instances_are_served(load, cloud, tmp_path, after):
    drained = tmp_path / 'drained'
    app = load('healthcheck', f'[healthcheck]\ndisable_by_file_path = {drained}\n', after=after)
    monitor = {'X-Openstack-Request-Id': 'req-1b4e28ba-2fa1-11d2-883f-0016d3cca427'} if after == 'request_id' else {}
    assert app.get('/healthcheck', headers=monitor).text.splitlines()[0] == 'OK'
    drained.touch()
    assert app.get('/healthcheck', headers=monitor, status=503).text.splitlines()[0] == 'DISABLED BY FILE'
    app.get('/healthcheck/live', status=200)
    assert app.get('/', headers=A).json['uuid'] == 'instance-a'


@pytest.mark.parametrize('filters', ['', 'lookup_cache'])
def test_the_probe_of_openstack_helm_is_answered_without_a_lookup(load, cloud, caplog, filters):
    """Its health-probe.py needs a status below 500 from the agent's socket, also while Neutron is away."""
    app = load(filters, after='header_source') if filters else load('', after='header_source')
    for link in order.chain(app.app):
        if hasattr(link, 'lookup'):
            link.lookup.find = None
    probe = {'X-Forwarded-For': '169.254.169.254', 'X-Quantum-Router-ID': 'pod-health-probe-check-ignore-errors'}
    for _ in range(2):
        app.get('/', headers=probe, status=404)
    assert cloud.nova.seen == []
    assert caplog.text == ''


def test_healthcheck_in_one_hop_does_not_respond_to_instances(load, cloud):
    came = {environ_keys.NAMESPACE: environ_keys.Namespace(router_id='router-a'), 'REMOTE_ADDR': '10.1.1.2'}
    app = load('healthcheck', after='catch_errors', name='one_hop')
    assert app.get('/healthcheck', extra_environ=came).json['path'] == '/healthcheck'


def test_request_log_has_a_line_for_each_request(load, caplog):
    app = load('request_log', after='catch_errors')
    with caplog.at_level('INFO', 'metadata_wsgi.filters.optional.request_log'):
        app.get('/latest/x?secret', headers=A)
        app.get('/', status=400)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].startswith('10.1.1.2 behind router router-a instance instance-a GET /latest/x')
    assert lines[1].startswith('nobody instance - GET / 400 ')


def test_filters_before_response_cache_refuse_cached_responses_too(load, cloud):
    filters = 'rate_limit session_token path_policy response_cache'
    options = f'[session_token]\nkeys = {KEY}\nrequired = true\n[path_policy]\nrule = hide GET /latest/user-data\n'
    app = load(
        filters,
        options,
        more=lambda text: text.replace('header_source instance ', 'header_source lookup_cache instance '),
    )
    token = app.put('/latest/api/token', headers={**A, TTL: '60'}).text
    for _ in range(3):
        assert app.get('/latest/x', headers={**A, TOKEN: token}).json['uuid'] == 'instance-a'
        app.get('/latest/x', headers=A, status=401)
        app.get('/latest/user-data', headers={**A, TOKEN: token}, status=404)
    assert len(cloud.nova.seen) == 1


def test_otel_makes_a_span_of_each_filter_of_the_shipped_pipeline(load, cloud):
    memory = pytest.importorskip('opentelemetry.sdk.trace.export.in_memory_span_exporter')
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    exporter = memory.InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    app = load('otel', after='request_id')
    assert app.get('/', headers=A).json['uuid'] == 'instance-a'
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == [
        'upstream', 'signature', 'instance', 'header_source', 'deadline', 'peer_credentials', 'GET',
    ]  # fmt: skip
    assert cloud.nova.seen[0]['HTTP_TRACEPARENT'].split('-')[1:3] == [
        f'{spans[0].context.trace_id:032x}', f'{spans[0].context.span_id:016x}',
    ]  # fmt: skip
    assert spans[-1].attributes['metadata_wsgi.instance_id'] == 'instance-a'
