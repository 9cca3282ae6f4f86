# SPDX-License-Identifier: Apache-2.0
import pytest
import webtest

from metadata_wsgi.http import error_responses


@pytest.mark.parametrize(
    ('app', 'status', 'body'),
    [
        (error_responses.bad_request('The client has no address.'), 400, b'The client has no address.\n'),
        (error_responses.instance_not_found(), 404, b'No instance was found for this address.\n'),
        (error_responses.payload_too_large(1020), 413, b'A request body may have at most 1020 bytes.\n'),
        (error_responses.request_timeout(), 408, b'The request body did not arrive in time.\n'),
        (error_responses.unavailable(), 503, b'The metadata service is not available now.\n'),
    ],
)
def test_status_and_text_of_each_error_response(app, status, body):
    response = webtest.TestApp(app).get('/<b>?q', status=status)
    assert response.body == body
    assert response.headers['Content-Type'] == 'text/plain; charset=UTF-8'
    assert response.headers['Content-Length'] == str(len(body))


def test_only_a_503_has_retry_after_and_it_is_one_second():
    """cloud-init counts ``Retry-After: 0`` as a failure."""
    assert webtest.TestApp(error_responses.unavailable()).get('/', status=503).headers['Retry-After'] == '1'
    assert 'Retry-After' not in webtest.TestApp(error_responses.instance_not_found()).get('/', status=404).headers


def test_an_error_response_to_head_has_the_headers_and_no_body():
    response = webtest.TestApp(error_responses.unavailable()).head('/', status=503)
    assert response.body == b''
    assert response.headers['Content-Length'] == '43'
