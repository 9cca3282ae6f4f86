# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadata_wsgi.http import header_names

RESERVED = [
    'X-Quantum-Router-ID', 'X-Quantum-Network-ID', 'X-Neutron-Router-ID', 'X-Neutron-Network-ID', 'X-OVN-Network-ID',
    'X-Forwarded-For', 'X-Forwarded-Host', 'X-Forwarded-Proto', 'Forwarded', 'X-Instance-ID', 'X-Tenant-ID',
    'X-Instance-ID-Signature', 'X-Metadata-Provider', 'X-Metadata-Provider-Signature', 'X-Metadata-Remaining-Ms',
    'X-Real-IP', 'X-Project-Id', 'X-HTTP-Method-Override', 'X-Original-URL', 'X-Openstack-Request-Id',
]  # fmt: skip


def spellings(name):
    """Every letter in either case, every dash also as an underscore."""
    return st.tuples(
        *(st.sampled_from([letter.upper(), letter.lower(), *('_' if letter == '-' else '')]) for letter in name)
    ).map(''.join)


@given(st.sampled_from(RESERVED).flatmap(spellings))
def test_reserved_headers_are_reserved_in_every_spelling(name):
    assert header_names.is_reserved(name)


@pytest.mark.parametrize('name', ['accept', 'User-Agent', 'x-aws-ec2-metadata-token', 'host', 'x-quantum', 'x-custom'])
def test_other_headers_are_not_reserved(name):
    assert not header_names.is_reserved(name)


def test_no_reserved_header_of_a_client_is_sent_to_nova():
    assert not [name for name in header_names.UPSTREAM_ALLOWED if header_names.is_reserved(name)]


def test_no_hop_by_hop_header_is_sent_to_nova():
    assert not header_names.UPSTREAM_ALLOWED & header_names.HOP_BY_HOP


def test_names_are_lower_case():
    """Names are compared in lower case everywhere."""
    every = (
        header_names.UPSTREAM_ALLOWED
        | header_names.HOP_BY_HOP
        | header_names.RESERVED
        | set(header_names.RESERVED_PREFIXES)
    )
    assert all(name == name.lower() and '_' not in name for name in every)


def test_the_names_of_the_id_headers():
    assert header_names.router_id('x-quantum') == 'x-quantum-router-id'
    assert header_names.network_id('x-neutron') == 'x-neutron-network-id'


@pytest.mark.parametrize('name', ['x-instance-id', 'accept', 'x-aws-ec2-metadata-token-ttl-seconds'])
def test_header_names_and_environ_keys_convert_into_each_other(name):
    assert header_names.environ_key(name) == 'HTTP_' + name.replace('-', '_').upper()
    assert header_names.of_environ_key(header_names.environ_key(name)) == name


@pytest.mark.parametrize('key', ['CONTENT_TYPE', 'REMOTE_ADDR', 'metadata_wsgi.source', 'wsgi.input', 'http_accept'])
def test_other_environ_keys_are_no_headers(key):
    assert header_names.of_environ_key(key) == ''
    assert not header_names.is_reserved_key(key)
