# SPDX-License-Identifier: Apache-2.0
import pytest
from keystoneauth1 import noauth
from keystoneauth1.identity import v3
from keystoneauth1.identity.generic import password

from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import ConfigError
from metadata_wsgi.lookup.neutron import factory, options

GRIZZLY = """[DEFAULT]
auth_url = http://keystone:5000/v3
admin_user = quantum
admin_password = secretive
admin_tenant_name = service
"""
PLUGIN = """
auth_type = password
auth_url = http://keystone:5000
username = quantum
password = secretive
project_name = service
user_domain_id = default
project_domain_id = default
"""


@pytest.fixture
def written(tmp_path):
    """A function: text of a configuration file -> paste's global_conf that names it."""

    def write(text):
        path = tmp_path / 'metadata_agent.ini'
        path.write_text(text)
        return {'config_file': str(path)}

    return write


@pytest.fixture
def read(written):
    return lambda text: options.read(written(text))


@pytest.mark.parametrize(
    'url',
    [
        'http://keystone:5000/v3',
        'http://keystone:5000/v3/',
        'http://keystone:5000/v2.0',
        'http://keystone:5000/v2.0/',
        'http://keystone:5000',
    ],
)
def test_grizzlys_options_are_given_to_keystones_v3(read, url):
    """Its v2.0 is no more; its users are in the domain default."""
    connection = read(GRIZZLY.replace('http://keystone:5000/v3', url))
    assert isinstance(connection.plugin, v3.Password)
    assert connection.plugin.auth_url == 'http://keystone:5000/v3'
    method = connection.plugin.auth_methods[0]
    assert (method.username, method.password, method.user_domain_id) == ('quantum', 'secretive', 'default')
    assert (connection.plugin.project_name, connection.plugin.project_domain_id) == ('service', 'default')


def test_what_grizzly_did_not_say(read):
    connection = read(GRIZZLY)
    assert connection.where == {'service_type': 'network', 'interface': 'admin', 'region_name': None}
    assert (connection.endpoint, connection.verify, connection.cert, connection.connections) == (None, True, None, 8)


def test_which_endpoint(read):
    connection = read(GRIZZLY + 'endpoint_type = publicURL\nauth_region = RegionTwo\n')
    assert (connection.where['interface'], connection.where['region_name']) == ('public', 'RegionTwo')


def test_how_certificates_are_checked(read, tmp_path):
    ca = tmp_path / 'ca.pem'
    ca.write_text('')
    assert read(GRIZZLY + f'auth_ca_cert = {ca}\n').verify == str(ca)
    assert read(GRIZZLY + f'auth_ca_cert = {ca}\nauth_insecure = true\n').verify is False


def test_a_certificate_authority_that_is_not_there_is_refused(read):
    with pytest.raises(ConfigError, match=r'auth_ca_cert = /nowhere/ca.pem in \[DEFAULT\]: there is no such file'):
        read(GRIZZLY + 'auth_ca_cert = /nowhere/ca.pem\n')


def test_everything_that_is_missing_is_named_at_once(read):
    with pytest.raises(ConfigError, match='admin_user, admin_password missing from') as raised:
        read('[DEFAULT]\nauth_url = http://keystone\nadmin_tenant_name = service\n')
    assert 'or [quantum] auth_type' in str(raised.value)


def test_an_auth_url_that_is_none(read):
    with pytest.raises(ConfigError, match='auth_url = keystone:5000: not a URL'):
        read(GRIZZLY.replace('http://keystone:5000/v3', 'keystone:5000'))


@pytest.mark.parametrize('group', ['quantum', 'neutron'])
def test_a_plugin_of_keystoneauths(read, group):
    connection = read(f'[{group}]{PLUGIN}')
    assert isinstance(connection.plugin, password.Password)
    assert connection.where == {
        'service_type': 'network', 'service_name': None, 'interface': ['internal', 'public'], 'region_name': None,
    }  # fmt: skip


def test_a_plugin_wins_over_grizzlys_options_and_quantum_over_neutron(read):
    text = f'{GRIZZLY}[neutron]{PLUGIN}[quantum]{PLUGIN}region_name = RegionTwo\n'
    connection = read(text)
    assert isinstance(connection.plugin, password.Password)
    assert connection.where['region_name'] == 'RegionTwo'


def test_the_adapters_options(read):
    more = 'valid_interfaces = admin, internal\nservice_type = net\nservice_name = quantum\n'
    connection = read(f'[quantum]{PLUGIN}{more}endpoint_override = http://quantum:9696\n')
    assert connection.where == {
        'service_type': 'net', 'service_name': 'quantum', 'interface': ['admin', 'internal'], 'region_name': None,
    }  # fmt: skip
    assert connection.endpoint == 'http://quantum:9696'


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_an_interface_in_the_singular(read):
    assert read(f'[quantum]{PLUGIN}interface = admin\n').where['interface'] == ['admin']


def test_the_sessions_options(read, tmp_path):
    files = {name: tmp_path / name for name in ('ca', 'cert', 'key')}
    for path in files.values():
        path.write_text('')
    text = f'[quantum]{PLUGIN}cafile = {files["ca"]}\ncertfile = {files["cert"]}\nkeyfile = {files["key"]}\n'
    connection = read(text)
    assert (connection.verify, connection.cert) == (str(files['ca']), (str(files['cert']), str(files['key'])))
    assert read(f'{text}insecure = true\n').verify is False
    assert read(f'[DEFAULT]\nauth_ca_cert = {files["ca"]}\n[quantum]{PLUGIN}').verify == str(files['ca'])


@pytest.mark.parametrize(
    ('more', 'said'),
    [
        ('cafile = /nowhere/ca.pem', r'cafile = /nowhere/ca.pem in \[quantum\]: there is no such file'),
        ('certfile = /nowhere/c.pem', r'\[quantum\] certfile = /nowhere/c.pem: keyfile is missing'),
    ],
)
def test_files_of_a_plugin_that_will_not_do(read, more, said):
    with pytest.raises(ConfigError, match=said):
        read(f'[quantum]{PLUGIN}{more}\n')


def test_a_plugin_that_there_is_not(read):
    with pytest.raises(ConfigError, match=r'\[quantum\] auth_type = pasword: there is no such plugin; choose one of'):
        read('[quantum]\nauth_type = pasword\n')


def test_a_plugin_that_misses_something(read):
    with pytest.raises(ConfigError, match=r'\[quantum\] auth_type = v3applicationcredential: You must provide'):
        read('[quantum]\nauth_type = v3applicationcredential\n')


def test_a_section_of_its_own_for_the_plugin(read):
    connection = read(f'[quantum]\nauth_section = keystone\n[keystone]{PLUGIN}')
    assert isinstance(connection.plugin, password.Password)


def test_a_section_that_has_no_plugin(read):
    with pytest.raises(ConfigError, match=r'auth_section = keystone: there is no auth_type in \[keystone\]'):
        read('[quantum]\nauth_section = keystone\n')


def test_a_quantum_without_keystone(read):
    connection = read('[quantum]\nauth_type = none\nendpoint = http://quantum:9696\n')
    assert isinstance(connection.plugin, noauth.NoAuth)
    grant = options.connect(connection).access.grant(Deadline.after(9))
    assert (grant.endpoint, grant.roles) == ('http://quantum:9696', frozenset())


def test_http_basic(read):
    text = '[quantum]\nauth_type = http_basic\nendpoint = http://quantum\nusername = quantum\npassword = secretive\n'
    grant = options.connect(read(text)).access.grant(Deadline.after(9))
    assert grant.headers == {'Authorization': 'Basic cXVhbnR1bTpzZWNyZXRpdmU='}


def test_a_connection_shows_no_credentials(read):
    assert 'secretive' not in repr(read(GRIZZLY))


def test_the_directory_asks_nobody_when_it_is_made(written):
    """keystone is no host: asking would fail."""
    directory = factory(written(GRIZZLY))
    directory.close()
