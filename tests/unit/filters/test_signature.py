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


@pytest.mark.parametrize('secrets', [(b'Jefe',), (b'Jefe', b'old')])
def test_the_signed_identity_has_a_signature_for_each_secret(secrets):
    environ = {
        environ_keys.SOURCE: environ_keys.Source('10.1.1.2', router_id='r1'),
        environ_keys.INSTANCE: environ_keys.Instance('what do ya want for nothing?', 'p1', 'port1'),
        'HTTP_X_INSTANCE_ID': 'forged',
    }
    before = dict(environ)
    seen = {}
    SignatureFilter(lambda e, s: seen.update(e), secrets=secrets)(environ, None)
    identity = seen.pop(environ_keys.SIGNED_IDENTITY)
    assert seen == before
    assert (identity.instance, identity.address) == (environ[environ_keys.INSTANCE], '10.1.1.2')
    assert identity.signatures[0] == '5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843'
    assert identity.signatures == tuple(sign(secret, 'what do ya want for nothing?') for secret in secrets)


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


@pytest.mark.parametrize(
    ('text', 'secrets'), [('', [b'Jefe']), ('metadata_proxy_shared_secret_old = old\n', [b'Jefe', b'old'])]
)
def test_the_factory_reads_the_secrets_from_the_file(tmp_path, text, secrets):
    path = tmp_path / 'agent.ini'
    path.write_text('[DEFAULT]\nmetadata_proxy_shared_secret = Jefe\n' + text)
    seen = {}
    environ = {
        environ_keys.SOURCE: environ_keys.Source('10.1.1.2'),
        environ_keys.INSTANCE: environ_keys.Instance('i1', 'p1', 'port1'),
    }
    filter_factory({'config_file': str(path)})(lambda e, s: seen.update(e))(environ, None)
    assert seen[environ_keys.SIGNED_IDENTITY].signatures == tuple(sign(secret, 'i1') for secret in secrets)
