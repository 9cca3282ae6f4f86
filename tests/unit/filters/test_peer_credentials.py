# SPDX-License-Identifier: Apache-2.0
import os
import socket
import struct

import pytest
import webob
import webtest

from metadata_wsgi.config import config_files
from metadata_wsgi.errors import ConfigError
from metadata_wsgi.filters.peer_credentials import OPTS, PeerCredentialsFilter, accepted_ids, filter_factory
from metadata_wsgi.net import options as net_options
from metadata_wsgi.privileges import identity
from metadata_wsgi.privileges import options as privileges_options


def app(environ, start_response):
    start_response('200 OK', [('Content-Length', '0')])
    return []


def get(filter_, connection=None):
    """The status of a request on ``connection``. Not by webtest: it sets paste.testing."""
    request = webob.Request.blank('/')
    if connection is not None:
        request.environ['gunicorn.socket'] = connection
    return request.get_response(filter_).status_int


@pytest.fixture
def connection():
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        yield one


def test_a_named_user_or_group_passes(connection):
    uid, gid = os.getuid(), os.getgid()
    assert get(PeerCredentialsFilter(app, uids=frozenset({uid})), connection) == 200
    assert get(PeerCredentialsFilter(app, uids=frozenset(), gids=frozenset({gid})), connection) == 200


def test_another_user_is_refused_and_logged_once(connection, caplog):
    filter_ = PeerCredentialsFilter(app, uids=frozenset({os.getuid() + 1}), gids=frozenset({os.getgid() + 1}))
    assert [get(filter_, connection) for _ in range(3)] == [403] * 3
    (record,) = caplog.records
    assert f'process {os.getpid()} of uid {os.getuid()}, gid {os.getgid()}' in record.message


def test_an_unknown_peer_is_refused():
    filter_ = PeerCredentialsFilter(app, uids=frozenset({os.getuid()}), gids=frozenset({os.getgid()}))
    assert get(filter_) == 403
    with socket.create_server(('127.0.0.1', 0)) as server, socket.create_connection(server.getsockname()) as tcp:
        assert get(filter_, tcp) == 403


def test_paste_testing_passes():
    assert webtest.TestApp(PeerCredentialsFilter(app, uids=frozenset())).get('/').status_int == 200


@pytest.fixture
def configured(tmp_path):
    def load(**options):
        path = tmp_path / 'agent.ini'
        path.write_text('[DEFAULT]\n' + ''.join(f'{name} = {value}\n' for name, value in options.items()))
        return filter_factory({'config_file': str(path)})(app)

    return load


def test_by_default_the_own_user_passes(configured, connection):
    assert get(configured(), connection) == 200


def test_an_unknown_user_is_a_config_error(configured):
    with pytest.raises(ConfigError, match='no-such-user: there is no such user'):
        configured(metadata_peer_users='root,no-such-user')


def test_socket_mode_all_passes_everybody_unless_a_user_is_named(configured):
    assert get(configured(metadata_proxy_socket_mode='all')) == 200
    assert get(configured(metadata_proxy_socket_mode='all', metadata_peer_users='root')) == 403


class FakeConnection:
    """A connection of a process with these credentials."""

    family = socket.AF_UNIX

    def __init__(self, uid, gid):
        self._credentials = struct.pack('3i', 4711, uid, gid)

    def getsockopt(self, level, name, size):
        return self._credentials


NOBODY = 65534


@pytest.fixture
def without_own_user(tmp_path):
    """The filter on a host without the user metadata-wsgi: the workers run as nobody, or as ``metadata_user``."""

    def load(**options):
        path = tmp_path / 'agent.ini'
        path.write_text('[DEFAULT]\n' + ''.join(f'{name} = {value}\n' for name, value in options.items()))
        conf = config_files.load({'config_file': str(path)}, [*OPTS, *net_options.OPTS, *privileges_options.OPTS])
        uids, gids = accepted_ids(conf, identity.Identity(NOBODY, NOBODY, 'nobody'))
        return PeerCredentialsFilter(app, uids=uids, gids=gids)

    return load


@pytest.mark.parametrize('credentials', [(NOBODY, NOBODY), (NOBODY, 4712), (4712, NOBODY)])
def test_nobody_is_refused_by_default(without_own_user, credentials, caplog):
    """Other programs run as nobody too: each of them could name any instance."""
    filter_ = without_own_user()
    assert get(filter_, FakeConnection(*credentials)) == 403
    assert 'create the user metadata-wsgi' in caplog.text
    assert get(filter_, FakeConnection(0, 0)) == 200
    assert get(filter_, FakeConnection(os.geteuid(), 4712)) == 200


@pytest.mark.parametrize('option', ['metadata_user', 'metadata_peer_users', 'metadata_proxy_user'])
def test_nobody_passes_where_an_option_names_it(without_own_user, option):
    assert get(without_own_user(**{option: NOBODY}), FakeConnection(NOBODY, 4712)) == 200


@pytest.mark.parametrize('option', ['metadata_group', 'metadata_peer_groups', 'metadata_proxy_group'])
def test_nogroup_passes_where_an_option_names_it(without_own_user, option):
    assert get(without_own_user(**{option: NOBODY}), FakeConnection(4712, NOBODY)) == 200


def test_root_passes_whichever_user_the_agent_is(monkeypatch):
    """A namespace proxy that root runs, where the agent runs as another user."""
    monkeypatch.setattr(os, 'geteuid', lambda: 4711)
    conf = config_files.load({}, [*OPTS, *net_options.OPTS, *privileges_options.OPTS])
    workers = identity.Identity(4711, 4711, 'metadata-wsgi')
    assert {0, 4711} <= accepted_ids(conf, workers)[0]
