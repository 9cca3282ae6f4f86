# SPDX-License-Identifier: Apache-2.0
import os
import socket
import subprocess

import pytest

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.netns import interface_state, iptables_backend, namespaces
from metadata_wsgi.netns.runner import SubprocessRunner

pytestmark = pytest.mark.netns


def inode():
    return os.stat('/proc/thread-self/ns/net').st_ino


def test_a_namespace_is_found_by_its_name(world):
    assert namespaces.exists(world.router)
    assert world.router in namespaces.names()
    assert os.path.exists(namespaces.path(world.router))


def test_a_missing_namespace_is_an_error_and_is_not_made():
    assert not namespaces.exists('there-is-none')
    with pytest.raises(NetnsError, match='namespace there-is-none: No such file'):
        namespaces.run_in('there-is-none', inode)
    assert not namespaces.exists('there-is-none')


def test_the_function_runs_inside_and_the_caller_stays_outside(world):
    before = inode()
    assert namespaces.run_in(world.router, inode) == os.stat(namespaces.path(world.router)).st_ino
    assert inode() == before != os.stat(namespaces.path(world.router)).st_ino


def test_what_the_function_raises_is_raised(world):
    with pytest.raises(ZeroDivisionError):
        namespaces.run_in(world.router, lambda: 1 / 0)


def test_a_socket_stays_where_it_was_opened(world):
    listener = namespaces.run_in(world.router, lambda: socket.create_server(('10.1.1.1', 9697)))
    with listener, namespaces.run_in(world.guest, lambda: socket.create_connection(('10.1.1.1', 9697), 5)):
        listener.accept()[0].close()


def test_a_processs_namespace_has_its_name_until_it_is_made_anew(world):
    cat = ['ip', 'netns', 'exec', world.router, 'cat']
    child = subprocess.Popen(cat, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        child.stdin.write(b'in it now\n')
        child.stdin.flush()
        child.stdout.readline()
        assert namespaces.name_of(child.pid) == world.router
        subprocess.run(['ip', 'netns', 'delete', world.router], check=True)
        subprocess.run(['ip', 'netns', 'add', world.router], check=True)
        assert namespaces.name_of(child.pid) is None
    finally:
        child.communicate()
    assert namespaces.name_of(child.pid) is None


def test_a_namespace_made_anew_under_its_name_is_another(world):
    former = namespaces.identity(world.router)
    with namespaces.run_in(world.router, socket.socket) as opened:
        assert namespaces.identity_of(opened) == former
        world.remove()
        assert namespaces.identity(world.router) is None
        world.make()
        assert namespaces.identity_of(opened) == former != namespaces.identity(world.router)


def test_a_program_is_run_inside(world):
    said = SubprocessRunner()(['readlink', '/proc/self/ns/net'], namespace=world.router)
    assert said == f'net:[{namespaces.identity(world.router)[1]}]\n'
    with pytest.raises(NetnsError, match='there-is-none'):
        SubprocessRunner()(['true'], namespace='there-is-none')


def test_which_kinds_of_iptables_have_anything(world, program):
    assert iptables_backend.kinds(world.router) == frozenset()
    add = ['ip', 'netns', 'exec', world.router, program, '-A', 'INPUT', '-j', 'ACCEPT']
    subprocess.run(add, check=True)
    assert iptables_backend.kinds(world.router) == {program.removeprefix('iptables-')}
    # Nobody knows: then both are looked at.
    assert iptables_backend.kinds('there-is-none') == {'legacy', 'nft'}


def test_only_ip6tables_is_noticed_too(world, program):
    add = ['ip', 'netns', 'exec', world.router, program.replace('iptables', 'ip6tables'), '-A', 'INPUT', '-j', 'ACCEPT']
    subprocess.run(add, check=True)
    assert iptables_backend.kinds(world.router) == {program.removeprefix('iptables-')}


def test_the_interfaces_by_name(world):
    assert {'lo', 'qr-in', 'qg-out'} <= set(interface_state.names(world.router))
