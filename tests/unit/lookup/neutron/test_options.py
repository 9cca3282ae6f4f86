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
def test_legacy_options_are_used_with_the_v3_api(read, url):
    """Keystone has no v2.0 API any more; its users are in the domain default."""
    settings = read(GRIZZLY.replace('http://keystone:5000/v3', url))
    assert isinstance(settings.plugin, v3.Password)
    assert settings.plugin.auth_url == 'http://keystone:5000/v3'
    method = settings.plugin.auth_methods[0]
    assert (method.username, method.password, method.user_domain_id) == ('quantum', 'secretive', 'default')
    assert (settings.plugin.project_name, settings.plugin.project_domain_id) == ('service', 'default')


def test_defaults_of_the_legacy_options(read):
    settings = read(GRIZZLY)
    assert settings.endpoint_filter == {'service_type': 'network', 'interface': 'admin', 'region_name': None}
    assert (settings.endpoint, settings.verify, settings.cert, settings.connections) == (None, True, None, 8)


def test_endpoint_type_and_region_select_the_endpoint(read):
    settings = read(GRIZZLY + 'endpoint_type = publicURL\nauth_region = RegionTwo\n')
    assert (settings.endpoint_filter['interface'], settings.endpoint_filter['region_name']) == ('public', 'RegionTwo')


def test_auth_ca_cert_and_auth_insecure_set_verification(read, tmp_path):
    ca = tmp_path / 'ca.pem'
    ca.write_text('')
    assert read(GRIZZLY + f'auth_ca_cert = {ca}\n').verify == str(ca)
    assert read(GRIZZLY + f'auth_ca_cert = {ca}\nauth_insecure = true\n').verify is False


def test_a_missing_ca_file_is_refused(read):
    with pytest.raises(ConfigError, match=r'auth_ca_cert = /nowhere/ca.pem in \[DEFAULT\]: there is no such file'):
        read(GRIZZLY + 'auth_ca_cert = /nowhere/ca.pem\n')


def test_all_missing_options_are_named_at_once(read):
    with pytest.raises(ConfigError, match='admin_user, admin_password missing from') as raised:
        read('[DEFAULT]\nauth_url = http://keystone\nadmin_tenant_name = service\n')
    assert 'or [neutron] auth_type' in str(raised.value)


def test_an_auth_url_that_is_no_url_is_refused(read):
    with pytest.raises(ConfigError, match='auth_url = keystone:5000: not a URL'):
        read(GRIZZLY.replace('http://keystone:5000/v3', 'keystone:5000'))


@pytest.mark.parametrize('group', ['quantum', 'neutron'])
def test_a_keystoneauth_plugin_in_a_group(read, group):
    settings = read(f'[{group}]{PLUGIN}')
    assert isinstance(settings.plugin, password.Password)
    assert settings.endpoint_filter == {
        'service_type': 'network', 'service_name': None, 'interface': ['internal', 'public'], 'region_name': None,
    }  # fmt: skip


def test_a_plugin_has_precedence_over_legacy_options_and_quantum_over_neutron(read):
    text = f'{GRIZZLY}[neutron]{PLUGIN}[quantum]{PLUGIN}region_name = RegionTwo\n'
    settings = read(text)
    assert isinstance(settings.plugin, password.Password)
    assert settings.endpoint_filter['region_name'] == 'RegionTwo'


def test_adapter_options_select_the_endpoint(read):
    more = 'valid_interfaces = admin, internal\nservice_type = net\nservice_name = quantum\n'
    settings = read(f'[quantum]{PLUGIN}{more}endpoint_override = http://quantum:9696\n')
    assert settings.endpoint_filter == {
        'service_type': 'net', 'service_name': 'quantum', 'interface': ['admin', 'internal'], 'region_name': None,
    }  # fmt: skip
    assert settings.endpoint == 'http://quantum:9696'


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_the_deprecated_option_interface(read):
    assert read(f'[quantum]{PLUGIN}interface = admin\n').endpoint_filter['interface'] == ['admin']


def test_session_options_set_tls_files(read, tmp_path):
    files = {name: tmp_path / name for name in ('ca', 'cert', 'key')}
    for path in files.values():
        path.write_text('')
    text = f'[quantum]{PLUGIN}cafile = {files["ca"]}\ncertfile = {files["cert"]}\nkeyfile = {files["key"]}\n'
    settings = read(text)
    assert (settings.verify, settings.cert) == (str(files['ca']), (str(files['cert']), str(files['key'])))
    assert read(f'{text}insecure = true\n').verify is False
    assert read(f'[DEFAULT]\nauth_ca_cert = {files["ca"]}\n[quantum]{PLUGIN}').verify == str(files['ca'])


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        ('cafile = /nowhere/ca.pem', r'cafile = /nowhere/ca.pem in \[quantum\]: there is no such file'),
        ('certfile = /nowhere/c.pem', r'\[quantum\] certfile = /nowhere/c.pem: keyfile is missing'),
    ],
)
def test_missing_tls_files_of_a_plugin_are_refused(read, more, message):
    with pytest.raises(ConfigError, match=message):
        read(f'[quantum]{PLUGIN}{more}\n')


def test_an_unknown_plugin_is_refused(read):
    with pytest.raises(ConfigError, match=r'\[quantum\] auth_type = pasword: there is no such plugin; choose one of'):
        read('[quantum]\nauth_type = pasword\n')


def test_a_plugin_without_its_required_options_is_refused(read):
    with pytest.raises(ConfigError, match=r'\[quantum\] auth_type = v3applicationcredential: You must provide'):
        read('[quantum]\nauth_type = v3applicationcredential\n')


def test_auth_section_names_the_section_of_the_plugin(read):
    settings = read(f'[quantum]\nauth_section = keystone\n[keystone]{PLUGIN}')
    assert isinstance(settings.plugin, password.Password)


def test_an_auth_section_without_auth_type_is_refused(read):
    with pytest.raises(ConfigError, match=r'auth_section = keystone: there is no auth_type in \[keystone\]'):
        read('[quantum]\nauth_section = keystone\n')


def test_auth_type_none_needs_no_keystone(read):
    settings = read('[quantum]\nauth_type = none\nendpoint = http://quantum:9696\n')
    assert isinstance(settings.plugin, noauth.NoAuth)
    token = options.make_ports_api(settings).auth.token(Deadline.after(9))
    assert (token.endpoint, token.roles) == ('http://quantum:9696', frozenset())


def test_auth_type_http_basic(read):
    text = '[quantum]\nauth_type = http_basic\nendpoint = http://quantum\nusername = quantum\npassword = secretive\n'
    token = options.make_ports_api(read(text)).auth.token(Deadline.after(9))
    assert token.headers == {'Authorization': 'Basic cXVhbnR1bTpzZWNyZXRpdmU='}


def test_the_repr_of_settings_has_no_credentials(read):
    assert 'secretive' not in repr(read(GRIZZLY))


def test_the_factory_sends_no_request(written):
    """The host keystone does not exist: a request would fail."""
    lookup = factory(written(GRIZZLY))
    lookup.close()
