# SPDX-License-Identifier: Apache-2.0
import os
import pwd

import pytest
import webtest
from hypothesis import given
from hypothesis import strategies as st

from metadata_wsgi.config import config_files
from metadata_wsgi.errors import ConfigError
from metadata_wsgi.filters.signature import SignatureFilter
from metadata_wsgi.http import header_names
from metadata_wsgi.inventory import Inventory, parse
from metadata_wsgi.metadata_service.app import MetadataApp, app_factory, split
from metadata_wsgi.metadata_service.password import Passwords
from metadata_wsgi.pipeline import environ_keys, order, paste_loader
from tests.unit.metadata_service.cloud import INVENTORY, SECRET, app, nova, signed

DATED = b'1.0 2007-01-19 2007-03-01 2007-08-29 2007-10-10 2007-12-15 2008-02-01 2008-09-01 2009-04-04'
VERSIONS = DATED.replace(b' ', b'\n') + b'\nlatest'
TEXT = 'text/plain; charset=UTF-8'


@pytest.mark.parametrize('path', ['/', '//', '/.', '/..', '/latest/..', '/?x=y'])
def test_the_root_needs_no_authentication(path):
    response = app().get(path)
    assert (response.body, response.headers['Content-Type']) == (VERSIONS, TEXT)


@pytest.mark.parametrize('path', ['/latest', '/ec2', '/openstack', '/openstack/latest/password', '/nonsense'])
def test_all_other_paths_need_authentication(path):
    assert app().get(path, status=400).body.startswith(b'400 Bad Request\n\nX-Instance-ID header is missing')


@pytest.mark.parametrize(
    ('path', 'content_type', 'body'),
    [
        ('/latest', TEXT, b'meta-data/\nuser-data'),
        ('/2009-04-04/', TEXT, b'meta-data/\nuser-data'),
        ('/ec2', TEXT, VERSIONS),
        ('/ec2/latest/', TEXT, b'meta-data/\nuser-data'),
        ('/latest/user-data', TEXT, b'#cloud-config\n'),
        ('//latest//meta-data//hostname/', TEXT, b'vm-full.example.org'),
        ('/latest/../latest/./meta-data/hostname', TEXT, b'vm-full.example.org'),
        ('/../latest/meta-data/hostname', TEXT, b'vm-full.example.org'),
        ('/latest/meta-data/%68ostname?x=y', TEXT, b'vm-full.example.org'),
        ('/openstack%2flatest/user_data/', TEXT, b'#cloud-config\n'),
        ('/openstack/latest/vendor_data.json', 'application/json', b'{"cloud-init": "x"}'),
    ],
)
def test_paths_as_in_nova(path, content_type, body):
    response = app().get(path, headers=signed())
    assert (response.headers['Content-Type'], response.body) == (content_type, body)
    assert response.headers['Content-Length'] == str(len(body))


def test_network_data_has_content_type_text():
    """As by Nova; clients parse it all the same."""
    assert app().get('/openstack/latest/network_data.json', headers=signed()).headers['Content-Type'] == TEXT


@pytest.mark.parametrize(
    'path',
    [
        '/nonsense', '/latest/nonsense', '/latest/api/token', '/latest/user-data/more',
        '/latest/meta-data/hostname/more', '/latest/%ff', '/latest/%00', '/ec2/openstack', '/ec2/ec2',
        '/openstack/ec2', '/openstack/latest/content', '/openstack/latest/%C3%A9', '/1999-01-01',
        '/latest/meta-data/host%0Aname',
    ],
)  # fmt: skip
def test_an_unknown_path_is_a_404(path):
    """Where a path goes on behind a leaf, or is not UTF-8, Nova's answer is 500."""
    response = app().get(path, headers=signed(), status=404)
    assert response.body == b'404 Not Found\n\nThe resource could not be found.\n\n   '


@pytest.mark.parametrize('method', ['POST', 'PUT', 'DELETE', 'OPTIONS'])
def test_every_method_reads(method):
    response = app().request('/latest/meta-data/hostname', method=method, headers=signed(), body=b'x')
    assert response.body == b'vm-full.example.org'


def test_head():
    response = app().head('/latest/meta-data/hostname', headers=signed())
    assert (response.headers['Content-Length'], response.body) == ('19', b'')
    app().head('/latest/nonsense', headers=signed(), status=404)


@pytest.mark.parametrize(
    ('path', 'tokens'),
    [
        ('', []),
        ('/', []),
        ('latest', ['latest']),
        ('/latest/', ['latest']),
        ('///latest/.//x/../y', ['latest', 'y']),
        ('/../../etc', ['etc']),
        ('/\xff', ['\xff']),
    ],
)
def test_the_parts_of_a_path(path, tokens):
    assert split(path) == tokens


PARTS = st.sampled_from(
    [
        *('', '.', '..', '/', 'ec2', 'latest', '2009-04-04', 'meta-data', 'public-keys', '0', 'hostname', 'user-data'),
        *('openstack', 'meta_data.json', 'password', 'content', '\xff', '\x00', 'é', '%', '=', '\n'),
    ]
)


@given(st.one_of(st.lists(PARTS, max_size=8).map('/'.join), st.text(st.characters(max_codepoint=255), max_size=30)))
def test_any_path_is_200_or_404(path):
    environ = {'PATH_INFO': '/' + path, **{header_names.environ_key(k): v for k, v in signed().items()}}
    assert app().request('/', environ=environ, expect_errors=True).status_int in (200, 404)


@given(st.text(st.characters(max_codepoint=255), max_size=30))
def test_a_path_is_the_same_whether_it_is_normalised_once_or_twice(path):
    tokens = split(path)
    assert split('/' + '/'.join(tokens)) == tokens
    assert not {'', '.', '..'} & set(tokens)


def test_it_can_end_the_agents_own_pipeline():
    """It reads the signed identity there, and no header of the client."""
    pipeline = SignatureFilter(nova(), secrets=(b'another', SECRET))
    source, instance = (
        environ_keys.Source('10.1.1.2', network_id='n2'),
        environ_keys.Instance('bare', 'blue', 'bare-port'),
    )
    client = webtest.TestApp(pipeline, extra_environ={environ_keys.SOURCE: source, environ_keys.INSTANCE: instance})
    assert client.get('/latest/meta-data/hostname').body == b'vm-bare'


def test_alone_it_is_a_valid_pipeline():
    assert order.check(nova()) is None


def test_each_request_uses_the_current_inventory(tmp_path):
    states = [INVENTORY, Inventory()]
    changing = MetadataApp(shared_secret=SECRET, current=lambda: states.pop(0), passwords=Passwords(str(tmp_path)))
    client = webtest.TestApp(changing)
    assert [client.get('/latest', headers=signed(), status='*').status_int for _ in range(2)] == [200, 404]


@pytest.fixture
def configured(tmp_path):
    def configure(static='', ours='', secret='metadata_proxy_shared_secret = a secret of tests', **global_conf):
        (tmp_path / 'one.yaml').write_text(CLOUD.format('one'))
        (tmp_path / 'two.yaml').write_text(CLOUD.format('two'))
        text = f'[DEFAULT]\n{secret}\n[static]\n{static}\n[metadata_app]\npassword_dir = {tmp_path}/a/b\n{ours}\n'
        (tmp_path / 'agent.ini').write_text(text.replace('HERE', str(tmp_path)))
        return app_factory({'config_file': str(tmp_path / 'agent.ini'), **global_conf})

    return configure


CLOUD = 'networks: []\nports: []\ninstances: [{{id: i, project: p, name: {}}}]\n'


@pytest.mark.parametrize(
    ('options', 'name'),
    [
        ({'ours': 'inventory = HERE/one.yaml'}, b'one'),
        ({'static': 'inventory = HERE/one.yaml'}, b'one'),
        ({'static': 'inventory = HERE/one.yaml', 'ours': 'inventory = HERE/two.yaml'}, b'two'),
    ],
)
def test_the_inventory_is_the_static_directorys_unless_there_is_another(configured, options, name):
    client = webtest.TestApp(configured(**options))
    assert client.get('/latest/meta-data/hostname', headers=signed('i', 'p')).body == name


def test_the_password_directory_is_created_with_mode_0700(configured, tmp_path):
    client = webtest.TestApp(configured(ours='inventory = HERE/one.yaml'))
    assert (tmp_path / 'a' / 'b').stat().st_mode & 0o777 == 0o700
    client.post('/openstack/latest/password', b'x', headers=signed('i', 'p'))
    assert (tmp_path / 'a' / 'b' / 'i').read_bytes() == b'x'


def test_a_check_of_the_configuration_does_not_create_the_password_directory(configured, tmp_path):
    """As root it would belong to root, and the agent of another user could not use it."""
    configured(ours='inventory = HERE/one.yaml', **{paste_loader.ONLY_CHECK: 'true'})
    assert not (tmp_path / 'a').exists()


FOR_DAEMON = {'secret': 'metadata_proxy_shared_secret = s\nmetadata_user = daemon', 'ours': 'inventory = HERE/one.yaml'}


@pytest.mark.skipif(os.geteuid() != 0, reason='needs root')
@pytest.mark.parametrize('exists', [False, True])
def test_root_gives_the_password_directory_to_the_workers(configured, tmp_path, exists):
    """A worker of an agent that root starts loads the pipeline as root, and then changes its user."""
    tmp_path.chmod(0o755)
    if exists:
        (tmp_path / 'a' / 'b').mkdir(mode=0o700, parents=True)
    with config_files.parsed_once():
        configured(**FOR_DAEMON)
    daemon = pwd.getpwnam('daemon')
    os.setegid(daemon.pw_gid)
    os.seteuid(daemon.pw_uid)
    try:
        assert Passwords(str(tmp_path / 'a' / 'b')).set_once('i', b'x')
    finally:
        os.seteuid(0)
        os.setegid(0)
    assert (tmp_path / 'a' / 'b').stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason='needs root')
def test_root_gives_the_workers_no_directory_of_another_user_or_through_its_symbolic_link(configured, tmp_path):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'target').mkdir()
    link = tmp_path / 'a' / 'b'
    link.symlink_to(tmp_path / 'target')
    os.chown(link, 4711, -1, follow_symlinks=False)
    with (
        config_files.parsed_once(),
        pytest.raises(ConfigError, match=r'password_dir = .*: b is a symbolic link of uid'),
    ):
        configured(**FOR_DAEMON)
    assert (tmp_path / 'target').stat().st_uid == 0
    # The operator's own link, for example to another disk.
    os.chown(link, 0, -1, follow_symlinks=False)
    with config_files.parsed_once():
        configured(**FOR_DAEMON)
    assert (tmp_path / 'target').stat().st_uid != 0
    link.unlink()
    (tmp_path / 'a' / 'b').mkdir()
    os.chown(tmp_path / 'a' / 'b', 4711, -1)
    with config_files.parsed_once(), pytest.raises(ConfigError, match='it belongs to uid 4711, and not to the workers'):
        configured(**FOR_DAEMON)


@pytest.mark.parametrize(
    ('options', 'complaint'),
    [
        ({}, r'inventory is missing from \[static\]'),
        ({'ours': 'inventory = HERE/gone.yaml'}, r'gone\.yaml: cannot be read'),
        ({'static': 'inventory = HERE/one.yaml', 'secret': ''}, 'metadata_proxy_shared_secret is missing'),
        (
            {'ours': 'inventory = HERE/one.yaml\npassword_dir = HERE/one.yaml/x'},
            r'password_dir = .*/one\.yaml/x: Not a directory; name a directory that ',
        ),
        (
            # No user can create a file there, not even root.
            {'ours': 'inventory = HERE/one.yaml\npassword_dir = /proc'},
            r'password_dir = /proc: .*; name a directory that the user of the workers may ',
        ),
    ],
)
def test_a_wrong_configuration_stops_the_start(configured, options, complaint):
    with pytest.raises(ConfigError, match=complaint):
        configured(**options)


def test_a_key_name_with_blanks_and_umlauts():
    """The listing has the name; the path has the number only, as in Nova."""
    cloud = (
        'networks: []\nports: []\ninstances:\n'
        '- {id: full, project: red, name: vm, public_keys: {"ops key ü": ssh-ed25519 AAAA}}\n'
    )
    inventory = parse(cloud.encode(), 'f.yaml')
    service = MetadataApp(shared_secret=SECRET, current=lambda: inventory, passwords=Passwords('/nonexistent'))
    keys = webtest.TestApp(service)
    directory = '/latest/meta-data/public-keys/'
    assert keys.get(directory, headers=signed()).body == '0=ops key ü'.encode()
    assert keys.get(directory + '0/', headers=signed()).text == 'openssh-key'
    assert keys.get(directory + '0/openssh-key', headers=signed()).text == 'ssh-ed25519 AAAA'
    keys.get(directory + '0=ops%20key%20%C3%BC', headers=signed(), status=404)
    keys.get('/latest/dynamic/instance-identity/document', headers=signed(), status=404)


def test_an_unknown_instance_while_a_newer_inventory_is_read_is_a_503():
    service = MetadataApp(
        shared_secret=SECRET, current=lambda: INVENTORY, passwords=Passwords('/nonexistent'), is_reloading=lambda: True
    )
    client = webtest.TestApp(service)
    client.get('/latest/meta-data/', headers=signed())
    assert client.get('/', headers=signed('new'), status='*').status_int == 200
    response = client.get('/latest/meta-data/', headers=signed('new'), status=503)
    assert response.headers['Retry-After'] == '1'
