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


def ask(filter_, connection=None):
    """The status, asked as if on ``connection``: not by webtest, which says that it is a test."""
    request = webob.Request.blank('/')
    if connection is not None:
        request.environ['gunicorn.socket'] = connection
    return request.get_response(filter_).status_int


@pytest.fixture
def connection():
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        yield one


def test_a_user_or_group_that_is_named_passes(connection):
    uid, gid = os.getuid(), os.getgid()
    assert ask(PeerCredentialsFilter(app, uids=frozenset({uid})), connection) == 200
    assert ask(PeerCredentialsFilter(app, uids=frozenset(), gids=frozenset({gid})), connection) == 200


def test_another_is_refused_and_named_once(connection, caplog):
    filter_ = PeerCredentialsFilter(app, uids=frozenset({os.getuid() + 1}), gids=frozenset({os.getgid() + 1}))
    assert [ask(filter_, connection) for _ in range(3)] == [403] * 3
    (record,) = caplog.records
    assert f'process {os.getpid()} of uid {os.getuid()}, gid {os.getgid()}' in record.message


def test_who_cannot_be_known_is_refused():
    filter_ = PeerCredentialsFilter(app, uids=frozenset({os.getuid()}), gids=frozenset({os.getgid()}))
    assert ask(filter_) == 403
    with socket.create_server(('127.0.0.1', 0)) as server, socket.create_connection(server.getsockname()) as tcp:
        assert ask(filter_, tcp) == 403


def test_a_test_of_paste_has_no_peer():
    assert webtest.TestApp(PeerCredentialsFilter(app, uids=frozenset())).get('/').status_int == 200


@pytest.fixture
def configured(tmp_path):
    def load(**options):
        path = tmp_path / 'agent.ini'
        path.write_text('[DEFAULT]\n' + ''.join(f'{name} = {value}\n' for name, value in options.items()))
        return filter_factory({'config_file': str(path)})(app)

    return load


def test_by_default_we_ourselves_may(configured, connection):
    assert ask(configured(), connection) == 200


def test_who_is_not_there_is_a_sentence(configured):
    with pytest.raises(ConfigError, match='no-such-user: there is no such user'):
        configured(metadata_peer_users='root,no-such-user')


def test_all_is_everybody_unless_somebody_is_named(configured):
    assert ask(configured(metadata_proxy_socket_mode='all')) == 200
    assert ask(configured(metadata_proxy_socket_mode='all', metadata_peer_users='root')) == 403
