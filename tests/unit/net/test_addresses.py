# SPDX-License-Identifier: Apache-2.0
import socket

import pytest

from metadata_wsgi.net.addresses import interface_of, is_link_local, normalize_ip, with_interface


@pytest.mark.parametrize(
    ('address', 'expected'),
    [
        ('fe80::1', True), ('febf::1', True), ('fec0::1', False), ('2001:db8::1', False), ('::1', False),
        ('169.254.1.1', False), ('10.1.1.2', False),
    ],
)  # fmt: skip
def test_is_link_local(address, expected):
    assert is_link_local(address) is expected


@pytest.mark.parametrize(
    ('text', 'interface'), [('fe80::1%qr-1', 'qr-1'), ('fe80::1', None), ('10.1.1.2', None), ('', None)]
)
def test_interface_of(text, interface):
    assert interface_of(text) == interface


@pytest.mark.parametrize('text', ['fe80::1%', 'fe80::1%a b', 'fe80::1%' + 'x' * 16])
def test_an_invalid_interface_is_refused(text):
    with pytest.raises(ValueError, match='is not a zone'):
        interface_of(text)


def test_the_peer_address_gets_the_name_of_its_interface():
    index = socket.if_nametoindex('lo')
    with socket.socket(socket.AF_INET6) as connection:
        assert with_interface(connection.fileno(), ('fe80::1', 80, 0, index)) == 'fe80::1%lo'
        assert with_interface(connection.fileno(), ('2001:db8::1', 80, 0, 0)) == '2001:db8::1'
        assert with_interface(connection.fileno(), ('10.1.1.2', 80)) == '10.1.1.2'


def test_an_interface_that_is_gone_is_no_zone():
    with socket.socket(socket.AF_INET6) as connection:
        assert with_interface(connection.fileno(), ('fe80::1', 80, 0, 123456)) == 'fe80::1'


def test_the_canonical_text_has_no_zone():
    assert normalize_ip('FE80::1%qr-1') == 'fe80::1'
