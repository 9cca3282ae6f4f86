# SPDX-License-Identifier: Apache-2.0
import io
import threading

import pytest
import webob

from metadata_wsgi.metadata_service.app import _body
from metadata_wsgi.metadata_service.password import Passwords
from tests.unit.metadata_service.cloud import app, nova, signed

PATH = '/openstack/latest/password'
CONFLICT = b'409 Conflict\n\nThere was a conflict when trying to complete your request.\n\n   '


def test_a_password_is_set_once(tmp_path):
    client = app(tmp_path)
    before = client.get(PATH, headers=signed())
    assert (before.body, before.headers['Content-Type']) == (b'', 'text/html; charset=UTF-8')
    assert client.post(PATH, b'c2VjcmV0', headers=signed(), content_type='text/plain').body == b''
    again = client.post(PATH, b'other', headers=signed(), content_type='text/plain', status=409)
    assert again.body == CONFLICT
    assert client.get(PATH, headers=signed()).body == b'c2VjcmV0'
    assert client.get('/openstack/2013-04-04/password/', headers=signed()).body == b'c2VjcmV0'


def test_each_instance_has_its_own_password(tmp_path):
    client = app(tmp_path)
    client.post(PATH, b'full', headers=signed())
    assert client.get(PATH, headers=signed('bare', 'blue')).body == b''
    client.post(PATH, b'bare', headers=signed('bare', 'blue'))
    assert client.get(PATH, headers=signed()).body == b'full'


def test_the_password_is_shared_by_workers_and_survives_a_restart(tmp_path):
    app(tmp_path).post(PATH, b'one', headers=signed())
    assert app(tmp_path).get(PATH, headers=signed()).body == b'one'
    app(tmp_path).post(PATH, b'two', headers=signed(), status=409)


def test_an_empty_password_sets_nothing(tmp_path):
    """As in Nova: the next one is still accepted."""
    client = app(tmp_path)
    client.post(PATH, b'', headers=signed())
    client.post(PATH, b'now', headers=signed())
    client.post(PATH, b'', headers=signed(), status=409)
    assert client.get(PATH, headers=signed()).body == b'now'


@pytest.mark.parametrize(
    ('size', 'status', 'body'), [(1020, 200, b''), (1021, 400, b'400 Bad Request\n\nRequest is too large.\n\n   ')]
)
def test_a_password_has_at_most_1020_bytes(tmp_path, size, status, body):
    client = app(tmp_path)
    assert client.post(PATH, b'\xff' * size, headers=signed(), status=status).body == body
    assert client.get(PATH, headers=signed()).body == (b'\xff' * size if status == 200 else b'')


def test_a_second_password_is_a_409(tmp_path):
    client = app(tmp_path)
    client.post(PATH, b'one', headers=signed())
    client.post(PATH, b'x' * 5000, headers=signed(), status=409)


def test_a_truncated_body_is_not_stored(tmp_path):
    client = app(tmp_path)
    client.post(PATH, b'half', headers={**signed(), 'Content-Length': '8'}, status=400)
    assert client.get(PATH, headers=signed()).body == b''


def test_a_chunked_body_is_stored(tmp_path):
    """Nova responds 500 to one. wsgi.input_terminated means that the server knows where the body ends."""
    client = app(tmp_path)
    request = client.RequestClass.blank(PATH, method='POST', headers=signed(), environ={'wsgi.input_terminated': True})
    request.body_file_raw.write(b'chunked')
    request.body_file_raw.seek(0)
    request.environ.pop('CONTENT_LENGTH', None)
    client.do_request(request)
    assert client.get(PATH, headers=signed()).body == b'chunked'


def test_an_invalid_content_length_is_a_400(tmp_path):
    # No server of ours passes one on; webtest's lint would not either.
    environ = app().RequestClass.blank(PATH, method='POST', headers=signed()).environ
    statuses = []
    nova(tmp_path)({**environ, 'CONTENT_LENGTH': '-1'}, lambda status, headers, exc_info=None: statuses.append(status))
    assert statuses == ['400 Bad Request']


@pytest.mark.parametrize('method', ['PUT', 'DELETE', 'OPTIONS'])
def test_no_other_method(tmp_path, method):
    response = app(tmp_path).request(PATH, method=method, headers=signed(), expect_errors=True)
    assert (response.status_int, response.body) == (400, b'400 Bad Request\n\nGET and POST only are supported.\n\n   ')


def test_head(tmp_path):
    client = app(tmp_path)
    client.post(PATH, b'four', headers=signed())
    assert client.head(PATH, headers=signed()).headers['Content-Length'] == '4'


def test_a_content_length_with_leading_zeros_is_the_number():
    """The number that is compared is the one that is used."""
    environ = webob.Request.blank('/openstack/latest/password', method='POST', body=b'secret').environ
    for length in ('6', '0000000006', '0' * 5000 + '6'):
        assert _body({**environ, 'wsgi.input': io.BytesIO(b'secret'), 'CONTENT_LENGTH': length}) == b'secret'
    for length in ('7', '0000000007', '9' * 5000):
        with pytest.raises(webob.exc.HTTPBadRequest):
            _body({**environ, 'wsgi.input': io.BytesIO(b'secret'), 'CONTENT_LENGTH': length})


def test_versions_without_a_password_are_404(tmp_path):
    app(tmp_path).post('/openstack/2012-08-10/password', b'x', headers=signed(), status=404)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_directory_is_a_503_and_logged(tmp_path, caplog):
    response = app(tmp_path / 'gone').post(PATH, b'x', headers=signed(), status=503)
    assert response.headers['Retry-After'] == '1'
    assert [record.levelname for record in caplog.records] == ['ERROR']
    assert 'password_dir' in caplog.text


def test_log_of_a_missing_directory_is_throttled(tmp_path, caplog):
    service = app(tmp_path / 'gone')
    for _ in range(5):
        service.post(PATH, b'x', headers=signed(), status=503)
    assert len(caplog.records) == 1


class BrokenBody(io.BytesIO):
    """A request body whose connection fails with ``error``."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def read(self, *size):
        raise self.error


@pytest.mark.parametrize(
    ('error', 'status'), [(TimeoutError('timed out'), 408), (ConnectionResetError(104, 'reset'), 400)]
)
def test_a_body_that_does_not_arrive_is_not_a_failure_of_the_password_directory(tmp_path, caplog, error, status):
    environ = {'wsgi.input': BrokenBody(error), 'CONTENT_LENGTH': '4'}
    request = webob.Request.blank(PATH, method='POST', headers=signed(), environ=environ)
    assert request.get_response(nova(tmp_path)).status_int == status
    assert caplog.records == []


def test_one_of_many_concurrent_posts_wins(tmp_path):
    start, won = threading.Barrier(8), []

    def post(number):
        start.wait()
        if Passwords(str(tmp_path)).set_once('i', str(number).encode() * 1000):
            won.append(number)

    threads = [threading.Thread(target=post, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert Passwords(str(tmp_path)).get('i') == str(won[0]).encode() * 1000
    assert [path.name for path in tmp_path.iterdir()] == ['i']
    assert (tmp_path / 'i').stat().st_mode & 0o777 == 0o600
