# SPDX-License-Identifier: Apache-2.0
import pytest
import webob.exc
from hypothesis import given
from hypothesis import strategies as st

from metadata_wsgi.metadata_service.authentication import authenticate, is_signature
from tests.unit.metadata_service.cloud import SECRET, app, signed

PATH = '/latest/meta-data/hostname'
ID, SIGNATURE, TENANT = 'X-Instance-ID', 'X-Instance-ID-Signature', 'X-Tenant-ID'


def missing(name):
    return (400, f'400 Bad Request\n\n{name} header is missing from request.\n\n   '.encode())


FORBIDDEN = (403, b'403 Forbidden\n\nInvalid proxy request signature.\n\n   ')
NOT_FOUND = (404, b'404 Not Found\n\nThe resource could not be found.\n\n   ')


@pytest.mark.parametrize(
    ('changes', 'answer'),
    [
        ({ID: None, SIGNATURE: None, TENANT: None}, missing(ID)),
        ({ID: None, TENANT: None}, missing(ID)),
        ({SIGNATURE: None, TENANT: None}, missing(SIGNATURE)),
        ({TENANT: None}, missing(TENANT)),
        ({TENANT: None, SIGNATURE: '00'}, missing(TENANT)),
        ({ID: ''}, FORBIDDEN),
        ({ID: 'other'}, FORBIDDEN),
        ({ID: 'full,full'}, FORBIDDEN),
        ({SIGNATURE: ''}, FORBIDDEN),
        ({SIGNATURE: '00'}, FORBIDDEN),
        ({SIGNATURE: '\xe9'}, FORBIDDEN),
        ({SIGNATURE: signed()[SIGNATURE].upper()}, FORBIDDEN),
        ({SIGNATURE: signed()[SIGNATURE] + ' '}, FORBIDDEN),
        (signed(secret=b'another'), FORBIDDEN),
        ({TENANT: 'blue', SIGNATURE: '00'}, FORBIDDEN),
        ({TENANT: 'blue'}, NOT_FOUND),
        ({TENANT: ''}, NOT_FOUND),
        (signed('unknown'), NOT_FOUND),
        ({}, (200, b'vm-full.example.org')),
    ],
)
def test_status_for_missing_and_wrong_headers(changes, answer):
    """Statuses, order and texts as noted from nova 34; its 500 for a signature that is not ASCII is a 403 here."""
    headers = {name: value for name, value in {**signed(), **changes}.items() if value is not None}
    response = app().get(PATH, headers=headers, expect_errors=True)
    assert (response.status_int, response.body) == answer


@pytest.mark.parametrize(
    ('accept', 'content_type'),
    [('*/*', 'text/html'), ('text/html', 'text/html'), ('application/json', 'application/json'), (None, 'text/plain')],
)
def test_an_error_response_has_an_accepted_content_type(accept, content_type):
    headers = {'Accept': accept} if accept else {}
    assert app().get(PATH, headers=headers, status=400).content_type == content_type


def test_the_signature_is_the_one_of_rfc_4231():
    """Test case 2 there: key "Jefe", data "what do ya want for nothing?"."""
    right = '5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843'
    assert is_signature(b'Jefe', 'what do ya want for nothing?', right)


HEADERS = st.text(st.characters(min_codepoint=0, max_codepoint=255), max_size=70)


@given(HEADERS, HEADERS, HEADERS)
def test_any_guess_is_refused(instance, signature, tenant):
    environ = {'HTTP_X_INSTANCE_ID': instance, 'HTTP_X_INSTANCE_ID_SIGNATURE': signature, 'HTTP_X_TENANT_ID': tenant}
    with pytest.raises(webob.exc.HTTPForbidden):
        authenticate(environ, SECRET)


@given(st.binary(min_size=1), st.text(), st.integers(0, 63), st.sampled_from('0123456789abcdef'))
def test_a_signature_with_one_other_digit_is_invalid(secret, instance, at, digit):
    right = signed(instance.encode(errors='ignore').decode(), secret=secret)
    wrong = right[SIGNATURE][:at] + digit + right[SIGNATURE][at + 1 :]
    assert is_signature(secret, right[ID], wrong) == (wrong == right[SIGNATURE])
