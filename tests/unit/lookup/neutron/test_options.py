# SPDX-License-Identifier: Apache-2.0
from contextlib import closing

import pytest
from keystoneauth1 import noauth
from keystoneauth1.identity import v3
from keystoneauth1.identity.generic import password

from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import ConfigError, InstanceLookupError
from metadata_wsgi.lookup.neutron import factory, options
from metadata_wsgi.lookup.neutron.auth import EndpointFilter
from metadata_wsgi.lookup.neutron.transport import machine_ca_store
from tests.rawserver import RawServer, always_responds_with

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
    assert settings.endpoint_filter == EndpointFilter(('admin', 'internal', 'public'))
    assert (settings.endpoint, settings.cert, settings.connections) == (None, None, 8)
    assert settings.verify == machine_ca_store()


def test_endpoint_type_and_region_select_the_endpoint(read):
    settings = read(GRIZZLY + 'endpoint_type = publicURL\nauth_region = RegionTwo\n')
    assert settings.endpoint_filter == EndpointFilter(('public',), 'RegionTwo')


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
    assert 'auth_type in [neutron] or in [keystone_authtoken] of neutron.conf' in str(raised.value)


def test_an_auth_url_that_is_no_url_is_refused(read):
    with pytest.raises(ConfigError, match=r"auth_url = 'keystone:5000' in \[DEFAULT\]: not a URL"):
        read(GRIZZLY.replace('http://keystone:5000/v3', 'keystone:5000'))


@pytest.mark.parametrize('group', ['quantum', 'neutron'])
def test_a_keystoneauth_plugin_in_a_group(read, group):
    settings = read(f'[{group}]{PLUGIN}')
    assert isinstance(settings.plugin, password.Password)
    assert settings.endpoint_filter == EndpointFilter(
        ('internal', 'public', 'admin'), option_names=(f'[{group}] region_name', f'[{group}] valid_interfaces')
    )


def test_a_plugin_has_precedence_over_legacy_options_and_quantum_over_neutron(read):
    text = f'{GRIZZLY}[neutron]{PLUGIN}[quantum]{PLUGIN}region_name = RegionTwo\n'
    settings = read(text)
    assert isinstance(settings.plugin, password.Password)
    assert settings.endpoint_filter.region_name == 'RegionTwo'


def test_adapter_options_select_the_endpoint(read):
    more = 'valid_interfaces = admin, internal\nservice_type = net\nservice_name = quantum\n'
    settings = read(f'[quantum]{PLUGIN}{more}endpoint_override = http://quantum:9696\n')
    assert settings.endpoint_filter == EndpointFilter(
        ('admin', 'internal'), None, 'net', 'quantum', ('[quantum] region_name', '[quantum] valid_interfaces')
    )
    assert settings.endpoint == 'http://quantum:9696'


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_the_deprecated_option_interface(read):
    assert read(f'[quantum]{PLUGIN}interface = admin\n').endpoint_filter.interfaces == ('admin',)


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


KILO = """[DEFAULT]
auth_uri = http://controller:5000
auth_url = http://controller:35357
auth_region = RegionOne
auth_plugin = password
project_domain_id = default
user_domain_id = default
project_name = service
username = neutron
password = secretive
nova_metadata_ip = controller
metadata_proxy_shared_secret = secret
"""
NEUTRON_SERVER = """[DEFAULT]
core_plugin = ml2
auth_strategy = keystone
api_paste_config = /etc/neutron/api-paste.ini
[keystone_authtoken]
www_authenticate_uri = http://public:5000
auth_url = http://internal:5000
auth_type = password
project_domain_id = default
user_domain_id = default
project_name = service
username = neutron
password = secretive
service_type = network
interface = internal
region_name = RegionOne
"""


def test_credentials_of_kilo_to_mitaka(read):
    settings = read(KILO)
    assert isinstance(settings.plugin, password.Password)
    assert settings.plugin.auth_url == 'http://controller:35357'
    assert settings.endpoint_filter == EndpointFilter(('admin', 'internal', 'public'), 'RegionOne')
    assert settings.credentials.startswith(
        'user neutron of project service, from auth_type = password in [DEFAULT] of /'
    )


def test_credentials_of_neutron_itself_are_used_where_nothing_else_is_set(read):
    settings = read(NEUTRON_SERVER)
    assert settings.plugin.auth_url == 'http://internal:5000'
    assert settings.endpoint_filter == EndpointFilter(('internal', 'public', 'admin'), 'RegionOne')
    assert settings.credentials.startswith(
        'user neutron of project service, from auth_type = password in [keystone_authtoken] of /'
    )


@pytest.mark.parametrize(
    ('text', 'source'),
    [
        (GRIZZLY + NEUTRON_SERVER.removeprefix('[DEFAULT]\n'), 'from admin_user in [DEFAULT]'),
        (KILO + NEUTRON_SERVER.removeprefix('[DEFAULT]\n'), 'in [DEFAULT]'),
        (NEUTRON_SERVER + f'[neutron]{PLUGIN}', 'in [neutron]'),
        (NEUTRON_SERVER + '[neutron]\nauth_section = keystone_authtoken\n', 'in [keystone_authtoken]'),
    ],
    ids=['Grizzly', 'Kilo', 'neutron', 'auth_section'],
)
def test_other_credentials_have_precedence_over_those_of_neutron_itself(read, text, source):
    settings = read(text)
    assert source in settings.credentials
    assert 'secretive' not in settings.credentials


def test_our_own_options_select_the_endpoint_with_credentials_of_neutron_itself(read):
    settings = read(
        NEUTRON_SERVER.replace('[DEFAULT]\n', '[DEFAULT]\nauth_region = RegionTwo\nendpoint_type = publicURL\n')
    )
    assert settings.endpoint_filter == EndpointFilter(('public',), 'RegionTwo')


@pytest.mark.parametrize('value', ['http://controller:5000/v2.0\t# Keystone', 'http://controller:5000/v3  # größer'])
@pytest.mark.parametrize('text', [GRIZZLY, KILO, NEUTRON_SERVER], ids=['Grizzly', 'Kilo', 'neutron'])
def test_a_comment_behind_a_url_is_refused(read, text, value):
    lines = [f'auth_url = {value}' if line.startswith('auth_url') else line for line in text.splitlines()]
    with pytest.raises(ConfigError, match=r'^auth_url in \[.*the value has white space followed by #'):
        read('\n'.join([*lines, '']))


def test_the_session_reads_no_proxy_and_no_netrc_from_the_environment(read, monkeypatch, tmp_path):
    """A proxy would see the tokens, and an entry of .netrc would replace the Authorization header."""
    netrc = tmp_path / 'netrc'
    netrc.write_text('machine 127.0.0.1 login x password y\n')
    for name in ('http_proxy', 'https_proxy', 'ALL_PROXY'):
        monkeypatch.setenv(name, 'http://127.0.0.1:1')
    monkeypatch.setenv('NETRC', str(netrc))
    monkeypatch.setenv('REQUESTS_CA_BUNDLE', '/nowhere')
    response = b'HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"ports": []}'
    with closing(RawServer(always_responds_with(response))) as server:
        api = options.make_ports_api(read(f'[neutron]\nauth_type = none\nendpoint = http://127.0.0.1:{server.port}\n'))
        assert api.ports((('limit', '1'),), Deadline.after(9), lambda *query: None) == []
        api.close()
        assert b'Authorization' not in server.requests[0]


@pytest.mark.parametrize(('path', 'error'), [('', 'Keystone'), ('/v3', 'rejects the credentials')])
def test_a_keystone_that_answers_401_to_everything_does_not_block_a_thread(read, path, error):
    """keystoneauth would ask itself for a token while it holds the lock for it."""
    with closing(RawServer(always_responds_with(b'HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n'))) as server:
        text = f'[neutron]{PLUGIN}'.replace('http://keystone:5000', f'http://127.0.0.1:{server.port}{path}')
        api = options.make_ports_api(read(text))
        with pytest.raises(InstanceLookupError, match=error):
            api.auth.token(Deadline.after(9))
        api.close()
