# SPDX-License-Identifier: Apache-2.0
import os
import socket

import pytest
import webob
import webtest

from metadata_wsgi.errors import ConfigError
from metadata_wsgi.filters.peer_credentials import PeerCredentialsFilter, filter_factory


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
