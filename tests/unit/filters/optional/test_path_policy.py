# SPDX-License-Identifier: Apache-2.0
import pytest
import webtest

from metadata_wsgi.errors import ConfigError
from metadata_wsgi.filters.optional.path_policy import PathPolicyFilter, filter_factory, parse
from metadata_wsgi.pipeline import environ_keys
from tests.fakes import FakeClock

USER_DATA = ('hide GET /openstack/*/user_data', 'hide GET /*/user-data')


def status(lines, target, method='GET', created_at_s=None, clock=None):
    """The status for ``target``, as it is in the request line; 200 where the request passes."""

    def respond(environ, start_response):
        start_response('200 OK', [('Content-Type', 'text/plain'), ('Content-Length', '0')])
        return []

    app = PathPolicyFilter(respond, rules=[parse(line) for line in lines], clock=clock or FakeClock())
    instance = environ_keys.Instance('i1', 'p1', 'port1', created_at_s)
    environ = {environ_keys.INSTANCE: instance, 'RAW_URI': target}
    return webtest.TestApp(app).request('/', method=method, environ=environ, expect_errors=True).status_int


@pytest.mark.parametrize(
    'target',
    [
        '/openstack/latest/user_data', '/openstack/2013-04-04/user_data', '/latest/user-data', '/1.0/user-data/',
        '/latest//user-data', '//latest/user-data', '///latest/user-data', '/latest/./user-data',
        '/latest/meta-data/../user-data', '/latest/user%2Ddata', '/latest/%75ser-data', '/latest%2fuser-data',
        '/latest/%2e%2e/latest/user-data', '/latest/user-data?x=1', '/latest/user-data/beneath',
        '/ec2/latest/user-data', '/ec2//latest/user-data', '/x/../ec2/latest/user-data', '/latest/user-data/.',
        'http://169.254.169.254/latest/user-data', 'http://169.254.169.254//latest/user-data',
        # Decoded once this is /latest/%2e%2e/../user-data, and that is /latest/user-data.
        '/latest/%252e%252e/../user-data',
    ],
)  # fmt: skip
def test_a_hidden_path_is_a_404_in_every_spelling_that_nova_understands(target):
    assert status(USER_DATA, target) == 404


@pytest.mark.parametrize(
    'target',
    [
        '/latest/meta-data/',
        '/latest/user-data-x',
        '/latest',
        '/',
        '/user-data',
        '/a/b/user-data',
        '/latest/user%252Ddata',
    ],
)
def test_a_path_without_a_rule_passes(target):
    assert status(USER_DATA, target) == 200


@pytest.mark.parametrize('target', ['/x#/../latest/user-data', '/latest/user-data#', 'x', '/la\ttest'])
def test_a_target_that_servers_read_differently_is_refused(target):
    assert status(USER_DATA, target) == 400


@pytest.mark.parametrize('method', ['GET', 'HEAD', 'POST', 'PUT', 'DELETE', 'PATCH', 'OPTIONS'])
def test_every_method_is_a_read_as_in_nova(method):
    assert status(USER_DATA, '/latest/user-data', method) == 404


PASSWORD = '/openstack/2013-04-04/password'


@pytest.mark.parametrize(
    ('rule', 'reading', 'writing'),
    [('hide GET', 404, 200), ('hide POST', 200, 404), ('hide *', 404, 404)],
)
def test_a_password_can_be_hidden_and_still_be_set(rule, reading, writing):
    assert status([f'{rule} /openstack/*/password'], PASSWORD) == reading
    assert status([f'{rule} /openstack/*/password'], PASSWORD, 'POST') == writing


def test_the_first_rule_that_matches_decides():
    lines = ['allow GET /openstack/*/meta_data.json', 'hide GET /openstack', 'allow * /']
    assert [status(lines, f'/openstack/latest/{name}') for name in ('meta_data.json', 'user_data')] == [200, 404]
    assert status(lines, '/latest/user-data') == 200


def test_all_paths_but_the_allowed_ones_can_be_hidden():
    lines = ['allow GET /openstack', 'hide * /']
    assert [status(lines, target) for target in ('/openstack', '/openstack/x/y', '/latest/', '/')] == [
        200,
        200,
        404,
        404,
    ]
    assert status(lines, PASSWORD, 'POST') == 404


def test_a_rule_may_apply_some_time_after_the_port_was_created():
    clock = FakeClock(10_000.0)
    late = ['hide GET /*/user-data after 60']
    assert status(late, '/latest/user-data', created_at_s=clock.now_s - 3599, clock=clock) == 200
    assert status(late, '/latest/user-data', created_at_s=clock.now_s - 3600, clock=clock) == 404


def test_a_port_of_unknown_age_is_old():
    assert status(['hide GET /*/user-data after 60'], '/latest/user-data') == 404


@pytest.mark.parametrize(
    'line',
    ['', 'hide', 'hide GET', 'deny GET /x', 'hide PUT /x', 'hide GET x', 'hide GET /x after', 'hide GET /x after ten',
     'hide GET /x /y', 'hide GET /x after 5 hours'],
)  # fmt: skip
def test_an_invalid_rule_is_refused_with_an_example(line, tmp_path):
    with pytest.raises(ConfigError, match='for example: hide GET /openstack/'):
        parse(line)
    path = tmp_path / 'agent.ini'
    path.write_text(f'[path_policy]\nrule = hide GET /x\nrule = {line or "x"}\n')
    with pytest.raises(ConfigError, match='path_policy'):
        filter_factory({'config_file': str(path)})
