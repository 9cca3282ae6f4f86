# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadata_wsgi.errors import ConfigError
from metadata_wsgi.filters.signature import SignatureFilter, filter_factory, sign
from metadata_wsgi.pipeline import environ_keys


def test_the_signature_of_a_reference_value():
    """RFC 4231, test case 2."""
    assert sign(b'Jefe', 'what do ya want for nothing?') == (
        '5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843'
    )


@given(st.binary(min_size=1), st.uuids().map(str))
def test_a_signature_is_lower_case_hex(secret, instance_id):
    """Nova answers 403 to upper case."""
    signature = sign(secret, instance_id)
    assert len(signature) == 64
    assert set(signature) <= set('0123456789abcdef')


def test_the_headers_that_nova_authenticates_by_are_set():
    seen = {}
    environ = {
        environ_keys.SOURCE: environ_keys.Source('10.1.1.2', router_id='r1'),
        environ_keys.INSTANCE: environ_keys.Instance('what do ya want for nothing?', 'p1', 'port1'),
        'HTTP_X_INSTANCE_ID': 'forged',
        'HTTP_X_TENANT_ID': 'forged',
    }
    SignatureFilter(lambda e, s: seen.update(e), shared_secret=b'Jefe')(environ, None)
    assert {key: value for key, value in seen.items() if key.startswith('HTTP_')} == {
        'HTTP_X_FORWARDED_FOR': '10.1.1.2',
        'HTTP_X_INSTANCE_ID': 'what do ya want for nothing?',
        'HTTP_X_TENANT_ID': 'p1',
        'HTTP_X_INSTANCE_ID_SIGNATURE': '5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843',
    }


@pytest.mark.parametrize('text', ['', 'metadata_proxy_shared_secret =\n'])
def test_a_missing_secret_stops_the_start(tmp_path, text):
    path = tmp_path / 'agent.ini'
    path.write_text('[DEFAULT]\n' + text)
    with pytest.raises(ConfigError) as raised:
        filter_factory({'config_file': str(path)})
    assert str(raised.value) == (
        f'metadata_proxy_shared_secret is missing from [DEFAULT] of {path}. It is: Secret shared with Nova: '
        'the value of [neutron] metadata_proxy_shared_secret in nova.conf.'
    )


def test_the_factory_takes_the_secret_from_the_file(tmp_path):
    path = tmp_path / 'agent.ini'
    path.write_text('[DEFAULT]\nmetadata_proxy_shared_secret = Jefe\n')
    seen = {}
    environ = {
        environ_keys.SOURCE: environ_keys.Source('10.1.1.2'),
        environ_keys.INSTANCE: environ_keys.Instance('i1', 'p1', 'port1'),
    }
    filter_factory({'config_file': str(path)})(lambda e, s: seen.update(e))(environ, None)
    assert seen['HTTP_X_INSTANCE_ID_SIGNATURE'] == sign(b'Jefe', 'i1')
