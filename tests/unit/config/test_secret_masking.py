# SPDX-License-Identifier: Apache-2.0
"""Secrets are masked in a text, whatever encodes them."""

import base64
import binascii
import json
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oslo_config import cfg

from metadata_wsgi.config import secret_masking

KNOWN = [
    ('DEFAULT', [
        cfg.StrOpt('shared_secret', secret=True, deprecated_name='old_secret'), cfg.StrOpt('shared_secret_file'),
        cfg.StrOpt('host'), cfg.StrOpt('auth_url'), cfg.StrOpt('token_url'),
    ]),
]  # fmt: skip
FILE = """[DEFAULT]
# a comment with commented-secret
shared_secret = first-secret
host = nova.example
auth_url = http://user:url%2Fsecret@keystone:5000/v3
debug = true
[database]
connection = mysql+pymysql://neutron:db-secret@db/neutron
[keystone_authtoken]
password = service-secret
username = neutron
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name='agent.ini'):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_only_values_of_our_own_options_that_are_not_secret_are_shown(write):
    assert secret_masking.masked_lines(write(FILE), KNOWN) == [
        '[DEFAULT]',
        'shared_secret = ***',
        'host = nova.example',
        'auth_url = http://***@keystone:5000/v3',
        'debug = (not shown: an option of another program)',
        '[database]',
        'connection = (not shown: an option of another program)',
        '[keystone_authtoken]',
        'password = (not shown: an option of another program)',
        'username = (not shown: an option of another program)',
    ]


def test_a_deprecated_name_of_a_secret_option_and_a_name_that_sounds_secret_are_masked(write):
    lines = secret_masking.masked_lines(write('[DEFAULT]\nold_secret = a-secret\ntoken_url = b-secret\n'), KNOWN)
    assert lines == ['[DEFAULT]', 'old_secret = ***', 'token_url = ***']


def test_secrets_are_found_in_options_of_any_program_in_urls_in_files_and_in_credentials(write, tmp_path, monkeypatch):
    monkeypatch.setenv('CREDENTIALS_DIRECTORY', str(tmp_path / 'credentials'))
    (tmp_path / 'credentials').mkdir()
    write('systemd-secret\n', 'credentials/shared_secret')
    other = write('file-secret\n', 'secret')
    paths = [write(FILE), write(f'[DEFAULT]\nshared_secret_file = {other}\n', 'other.ini')]
    assert secret_masking.secrets_in(paths, KNOWN) == {
        'first-secret', 'url/secret', 'url%2Fsecret', 'db-secret', 'service-secret', 'file-secret', 'systemd-secret'
    }  # fmt: skip


def test_an_at_sign_in_a_password_of_a_url_does_not_end_it(write):
    path = write('[DEFAULT]\nauth_url = http://user:half@secret@keystone:5000/v3\n')
    assert secret_masking.masked_lines(path, KNOWN) == ['[DEFAULT]', 'auth_url = http://***@keystone:5000/v3']
    assert secret_masking.secrets_in([path], KNOWN) == {'half@secret'}


def test_the_password_of_each_host_in_a_url_is_a_secret(write):
    path = write('[DEFAULT]\ntransport_url = rabbit://nova:first-one@a:5672,nova:second-one@b:5672//\n')
    assert {'first-one', 'second-one'} <= secret_masking.secrets_in([path], KNOWN)


def test_every_line_of_a_file_that_cannot_be_parsed_counts_as_a_secret(write):
    found = secret_masking.secrets_in([write('[DEFAULT]\nshared_secret\nlost-secret\n')], KNOWN)
    assert 'lost-secret' in found


@given(st.text(min_size=6, max_size=40), st.binary(max_size=10), st.binary(max_size=10))
def test_no_encoding_of_a_secret_is_left_in_a_text(secret, before, after):
    data = secret.encode('utf-8', 'surrogatepass') if secret.isprintable() else secret.encode('utf-8', 'ignore')
    if data != secret.encode('utf-8', 'surrogateescape' if secret.isprintable() else 'ignore') or len(data) < 6:
        return
    forms = [
        secret, quote(data), quote(data, safe=''), quote_plus(data), json.dumps(secret)[1:-1], repr(secret)[1:-1],
        binascii.hexlify(data).decode(), binascii.hexlify(data).decode().upper(),
    ]  # fmt: skip
    for form in forms:
        assert form not in secret_masking.mask(f'x {form} y', [secret])
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        encoded = encode(before + data + after).decode()
        masked = secret_masking.mask(encoded, [secret])
        assert '***' in masked
        inner = encoded[(8 * len(before) + 5) // 6 : 8 * (len(before) + len(data)) // 6]
        assert inner not in masked


def test_a_text_without_secrets_is_unchanged():
    assert secret_masking.mask('nothing to hide', ['another-secret']) == 'nothing to hide'


def test_a_short_secret_is_not_searched_in_the_text(write):
    assert secret_masking.secrets_in([write('[DEFAULT]\nshared_secret = no\n')], KNOWN) == set()
