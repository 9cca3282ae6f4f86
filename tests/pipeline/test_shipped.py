# SPDX-License-Identifier: Apache-2.0
"""The shipped paste file, from the namespace proxy's headers to a Nova on loopback: the response of the client."""

import hashlib
import hmac

import pytest
import webtest

from metadata_wsgi.pipeline import environ_keys, order, paste_loader, request_id
from tests.cloud import SECRET, SHIPPED, Cloud

A = {'X-Forwarded-For': '10.1.1.2', 'X-Quantum-Router-ID': 'router-a'}
B = {'X-Forwarded-For': '10.1.1.2', 'X-Quantum-Router-ID': 'router-b'}
C = {'X-Forwarded-For': '10.1.1.2', 'X-Quantum-Network-ID': 'network-c'}


@pytest.fixture
def cloud(tmp_path):
    with Cloud(tmp_path) as made:
        yield made


@pytest.fixture
def path_(cloud):
    """Loads the shipped pipeline with options of its own, as a test app."""

    def load(**options):
        cloud.configure(**options)
        return webtest.TestApp(paste_loader.load(str(SHIPPED), 'agent', {'config_file': str(cloud.conf_file)}))

    return load


@pytest.mark.parametrize(
    ('headers', 'instance', 'project'),
    [(A, 'instance-a', 'project-a'), (B, 'instance-b', 'project-b'), (C, 'instance-c', 'project-c')],
)
def test_three_clients_at_one_address_are_three_instances(path_, cloud, headers, instance, project):
    response = path_().get('/openstack/latest/meta_data.json', headers=headers)
    assert response.json == {'uuid': instance, 'path': '/openstack/latest/meta_data.json'}
    request = cloud.nova.seen[0]
    assert (request['HTTP_X_TENANT_ID'], request['HTTP_X_FORWARDED_FOR']) == (project, '10.1.1.2')
    assert request['HTTP_X_INSTANCE_ID_SIGNATURE'] == (
        hmac.new(SECRET.encode(), instance.encode(), hashlib.sha256).hexdigest()
    )


def test_no_other_identity_header_is_sent_to_nova(path_, cloud):
    path_().get('/', headers={**A, 'X-Instance-ID': 'instance-b', 'X-Metadata-Provider': 'x', 'X-Custom': '1'})
    recorder = {key for key in cloud.nova.seen[0] if key.startswith('HTTP_')}
    assert recorder == {
        'HTTP_ACCEPT_ENCODING', 'HTTP_HOST', 'HTTP_X_FORWARDED_FOR', 'HTTP_X_INSTANCE_ID',
        'HTTP_X_INSTANCE_ID_SIGNATURE', 'HTTP_X_OPENSTACK_REQUEST_ID', 'HTTP_X_TENANT_ID',
    }  # fmt: skip
    assert cloud.nova.seen[0]['HTTP_X_INSTANCE_ID'] == 'instance-a'


@pytest.mark.parametrize('status', [200, 202, 302, 400, 404, 405, 409, 418])
def test_the_response_of_nova_is_unchanged(path_, cloud, status):
    cloud.nova.statuses = [status]
    response = path_().get('/x', headers=A, expect_errors=True)
    assert (response.status, response.headers['X-Nova']) == (f'{status} Nova', 'yes')
    assert response.headers['Content-Type'] == 'application/json'
    assert len(cloud.nova.seen) == 1


def test_no_instance_is_a_404(path_, cloud):
    path_().get('/', headers={**A, 'X-Forwarded-For': '10.1.1.77'}, status=404)
    assert cloud.nova.seen == []


def test_an_address_behind_another_router_is_not_found(path_, cloud):
    path_().get('/', headers={**A, 'X-Quantum-Router-ID': 'unknown-router'}, status=404)


def test_more_than_one_instance_is_a_404_and_a_warning_with_the_ports(path_, cloud, caplog):
    path_().get('/', headers={**A, 'X-Forwarded-For': '10.1.1.9'}, status=404)
    assert 'port-d' in caplog.text
    assert 'port-e' in caplog.text
    assert cloud.nova.seen == []


@pytest.mark.parametrize('status', [500, 502, 503, 504])
@pytest.mark.parametrize('method', ['GET', 'HEAD'])
def test_retry_of_a_failing_nova(path_, cloud, status, method):
    cloud.nova.statuses = [status, status]
    assert path_().request('/', method=method, headers=A).status_int == 200
    assert len(cloud.nova.seen) == 3


def test_retry_ends_with_the_response_of_nova(path_, cloud):
    cloud.nova.statuses = [500] * 1000
    response = path_(answer_within=3).get('/', headers=A, status=500)
    assert response.headers['X-Nova'] == 'yes'


def test_an_unavailable_nova_is_a_503_with_retry_after(path_, cloud):
    cloud.server.server_close()
    response = path_(answer_within=0.4).get('/', headers=A, status=503)
    assert response.headers['Retry-After'] == '1'


def test_the_deadline_comes_from_the_namespace_proxy(path_, cloud):
    cloud.server.server_close()
    path_(answer_within=3000).get('/', headers={**A, 'X-Metadata-Remaining-Ms': '200'}, status=503)


def test_a_403_is_relayed_and_the_log_names_the_secret_to_compare(path_, cloud, caplog):
    response = path_(metadata_proxy_shared_secret='another').get('/', headers=A, status=403)
    assert response.headers['X-Nova'] == 'yes'
    assert 'compare metadata_proxy_shared_secret here with [neutron] metadata_proxy_shared_secret' in caplog.text
    assert 'another' not in caplog.text


@pytest.mark.parametrize('method', ['POST', 'PUT'])
def test_a_password_reaches_nova_complete_and_once(path_, cloud, method):
    cloud.nova.statuses = [500]
    path_().request(
        '/openstack/2013-04-04/password', method=method, body=b'secret' * 100, headers=A, expect_errors=True
    )
    assert [(seen['body'], seen['CONTENT_LENGTH']) for seen in cloud.nova.seen] == [(b'secret' * 100, '600')]


@pytest.mark.parametrize(
    'headers',
    [
        {**A, **C},
        {'X-Forwarded-For': '10.1.1.2'},
        {'X-Quantum-Router-ID': 'router-a'},
        {**A, 'X-Forwarded-For': 'guest'},
        {**A, 'X-Forwarded-For': '10.1.1.2,10.1.1.3'},
        {**A, 'X-Neutron-Network-ID': 'network-c'},
    ],
    ids=['both ids', 'no id', 'no address', 'an address that is none', 'two addresses', 'another prefix'],
)
def test_a_request_without_a_source_is_a_400(path_, cloud, headers):
    path_().get('/', headers=headers, status=400)
    assert cloud.nova.seen == []


def test_a_body_over_the_limit_is_a_413(path_, cloud):
    path_(max_request_body=1020).post('/', b'x' * 1021, headers=A, status=413)
    assert cloud.nova.seen == []


def test_an_exception_in_a_filter_is_a_503(path_, cloud, caplog):
    """An unexpected exception: here a lookup whose result is not text."""
    from metadata_wsgi.pipeline import environ_keys

    response = path_().get(
        '/', headers=A, extra_environ={environ_keys.INSTANCE: environ_keys.Instance(None, 'p', 'q')}, status=503
    )
    assert response.headers['Retry-After'] == '1'
    assert 'Traceback' in caplog.text


def test_the_same_pipeline_is_main_for_gunicorn(cloud):
    """``gunicorn --paste`` loads ``main``, with the configuration file named in the paste file or default."""
    app = paste_loader.load(str(SHIPPED), 'main', {'config_file': str(cloud.conf_file)})
    assert webtest.TestApp(app).get('/', headers=B).json['uuid'] == 'instance-b'


def test_standalone_pipeline_responds_without_nova(cloud, tmp_path):
    """The ``standalone`` pipeline."""
    text = cloud.conf_file.read_text()
    inventory = next(line for line in text.splitlines() if line.startswith('inventory'))
    cloud.conf_file.write_text(f'{text}\n[metadata_app]\n{inventory}\npassword_dir = {tmp_path}/passwords\n')
    app = webtest.TestApp(paste_loader.load(str(SHIPPED), 'standalone', {'config_file': str(cloud.conf_file)}))
    assert app.get('/openstack/latest/meta_data.json', headers=B).json['uuid'] == 'instance-b'
    assert cloud.nova.seen == []


ID = 'req-1b4e28ba-2fa1-11d2-883f-0016d3cca427'
TRACEPARENT = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'


@pytest.mark.parametrize('name', ['agent', 'one_hop'])
def test_the_request_id_reaches_nova_and_the_client(path_, cloud, name):
    cloud.configure()
    app = webtest.TestApp(paste_loader.load(str(SHIPPED), name, {'config_file': str(cloud.conf_file)}))
    came = {environ_keys.NAMESPACE: environ_keys.Namespace('router-a'), 'REMOTE_ADDR': '10.1.1.2'}
    headers, extra = ({}, came) if name == 'one_hop' else (A, {})
    taken = app.get(
        '/x', headers={**headers, 'X-Openstack-Request-Id': ID, 'traceparent': TRACEPARENT}, extra_environ=extra
    )
    made = app.get(
        '/x', headers={**headers, 'X-Openstack-Request-Id': 'req-forged', 'traceparent': 'x'}, extra_environ=extra
    )
    assert taken.headers['X-Openstack-Request-Id'] == cloud.nova.seen[0]['HTTP_X_OPENSTACK_REQUEST_ID'] == ID
    assert cloud.nova.seen[0]['HTTP_TRACEPARENT'] == TRACEPARENT
    assert made.headers['X-Openstack-Request-Id'] == cloud.nova.seen[1]['HTTP_X_OPENSTACK_REQUEST_ID'] != 'req-forged'
    assert 'HTTP_TRACEPARENT' not in cloud.nova.seen[1]


def test_the_request_id_of_nova_is_relayed_and_ours_is_in_its_log(path_, cloud):
    cloud.nova.headers = [('X-Openstack-Request-Id', 'req-of-nova'), ('x-compute-request-id', 'req-of-nova')]
    response = path_().get('/x', headers={**A, 'X-Openstack-Request-Id': ID})
    assert response.headers.getall('X-Openstack-Request-Id') == ['req-of-nova']
    assert response.headers.getall('x-compute-request-id') == ['req-of-nova']
    assert cloud.nova.seen[0]['HTTP_X_OPENSTACK_REQUEST_ID'] == ID


@pytest.mark.parametrize(
    ('headers', 'status'), [({}, 400), ({**A, 'X-Forwarded-For': '10.1.1.77'}, 404), (A, 503)], ids=str
)
def test_an_error_response_of_the_agent_has_the_request_id(path_, cloud, headers, status):
    cloud.server.server_close()
    app = path_(answer_within=0.2)
    response = app.get('/x', headers={**headers, 'X-Openstack-Request-Id': ID}, status=status)
    assert response.headers['X-Openstack-Request-Id'] == ID


def test_an_unexpected_exception_is_a_503_with_the_request_id_and_in_the_log(path_, cloud, caplog):
    app = path_()
    next(link for link in order.chain(app.app) if order.name(link) == 'instance').app = None
    response = app.get('/x', headers={**A, 'X-Openstack-Request-Id': ID}, status=503)
    assert response.headers.getall('X-Openstack-Request-Id') == [ID]
    assert request_id.CURRENT.get() == ID
