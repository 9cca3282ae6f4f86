# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadata_wsgi.http import header_names

FORBIDDEN = [
    'X-Quantum-Router-ID', 'X-Quantum-Network-ID', 'X-Neutron-Router-ID', 'X-Neutron-Network-ID', 'X-OVN-Network-ID',
    'X-Forwarded-For', 'X-Forwarded-Host', 'X-Forwarded-Proto', 'Forwarded', 'X-Instance-ID', 'X-Tenant-ID',
    'X-Instance-ID-Signature', 'X-Metadata-Provider', 'X-Metadata-Provider-Signature', 'X-Metadata-Remaining-Ms',
    'X-Real-IP', 'X-Project-Id', 'X-HTTP-Method-Override', 'X-Original-URL',
]  # fmt: skip


def spellings(name):
    """Every letter in either case, every dash also as an underscore."""
    return st.tuples(
        *(st.sampled_from([letter.upper(), letter.lower(), *('_' if letter == '-' else '')]) for letter in name)
    ).map(''.join)


@given(st.sampled_from(FORBIDDEN).flatmap(spellings))
def test_what_a_guest_may_not_say_is_reserved_in_every_spelling(name):
    assert header_names.is_reserved(name)


@pytest.mark.parametrize('name', ['accept', 'User-Agent', 'x-aws-ec2-metadata-token', 'host', 'x-quantum', 'x-custom'])
def test_what_means_nothing_to_anybody_is_not(name):
    assert not header_names.is_reserved(name)


def test_nova_is_told_nothing_that_a_guest_may_not_say_but_the_signature():
    reserved = {name for name in header_names.UPSTREAM_ALLOWED if header_names.is_reserved(name)}
    assert reserved == {'x-forwarded-for', 'x-instance-id', 'x-tenant-id', 'x-instance-id-signature'}


def test_nova_is_told_nothing_of_the_connection():
    assert not header_names.UPSTREAM_ALLOWED & header_names.HOP_BY_HOP


def test_names_are_lower_case():
    """They are compared so, everywhere."""
    every = (
        header_names.UPSTREAM_ALLOWED
        | header_names.HOP_BY_HOP
        | header_names.RESERVED
        | set(header_names.RESERVED_PREFIXES)
    )
    assert all(name == name.lower() and '_' not in name for name in every)


def test_the_ids_have_their_names():
    assert header_names.router_id('x-quantum') == 'x-quantum-router-id'
    assert header_names.network_id('x-neutron') == 'x-neutron-network-id'
