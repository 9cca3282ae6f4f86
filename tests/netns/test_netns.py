# SPDX-License-Identifier: Apache-2.0
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.netns import interface_state, namespaces, ruleset_template
from metadata_wsgi.netns.runner import SubprocessRunner

pytestmark = pytest.mark.netns


def inode():
    return os.stat('/proc/thread-self/ns/net').st_ino


def test_namespace_is_found_by_name(topology):
    assert namespaces.exists(topology.router)
    assert topology.router in namespaces.names()
    assert os.path.exists(namespaces.path(topology.router))


def test_missing_namespace_is_an_error_and_is_not_created():
    assert not namespaces.exists('there-is-none')
    with pytest.raises(NetnsError, match='there is no namespace there-is-none on this host'):
        namespaces.run_in('there-is-none', inode)
    assert not namespaces.exists('there-is-none')


def test_run_in_runs_inside_and_the_caller_stays_outside(topology):
    before = inode()
    assert namespaces.run_in(topology.router, inode) == os.stat(namespaces.path(topology.router)).st_ino
    assert inode() == before != os.stat(namespaces.path(topology.router)).st_ino


def test_run_in_raises_the_exception_of_the_function(topology):
    with pytest.raises(ZeroDivisionError):
        namespaces.run_in(topology.router, lambda: 1 / 0)


def test_nested_run_in_uses_the_thread_that_is_in_the_namespace(topology):
    def nested(name):
        return threading.get_native_id(), namespaces.run_in(name, lambda: (threading.get_native_id(), inode()))

    thread, (inner, found) = namespaces.run_in(topology.router, lambda: nested(topology.router))
    assert (inner, found) == (thread, os.stat(namespaces.path(topology.router)).st_ino)
    thread, (inner, found) = namespaces.run_in(topology.router, lambda: nested(topology.guest))
    assert inner != thread
    assert found == os.stat(namespaces.path(topology.guest)).st_ino


def test_nested_run_in_enters_a_recreated_namespace(topology):
    def recreate():
        topology.remove()
        topology.make()
        return namespaces.run_in(topology.router, inode), inode()

    new, former = namespaces.run_in(topology.router, recreate)
    assert new == os.stat(namespaces.path(topology.router)).st_ino != former


def test_thread_of_a_pool_enters_the_namespace_and_leaves_it(topology):
    def enter():
        namespaces.facts()['seen'] = True
        return threading.get_native_id(), inode(), namespaces.facts()

    def in_pool():
        with pytest.raises(ZeroDivisionError):
            namespaces.run_in(topology.router, lambda: 1 / 0)
        router = namespaces.run_in(topology.router, enter)
        facts = namespaces.facts()
        guest = namespaces.run_in(topology.guest, lambda: (threading.get_native_id(), inode(), namespaces.facts()))
        return threading.get_native_id(), router, guest, inode(), facts

    with ThreadPoolExecutor(1, initializer=namespaces.let_this_thread_enter) as pool:
        thread, router, guest, after, facts = pool.submit(in_pool).result()
    assert router == (thread, os.stat(namespaces.path(topology.router)).st_ino, {'seen': True})
    assert guest == (thread, os.stat(namespaces.path(topology.guest)).st_ino, {})
    assert (after, facts) == (inode(), {})


def test_main_thread_never_enters_a_namespace(topology):
    namespaces.let_this_thread_enter()
    assert namespaces.run_in(topology.router, threading.get_native_id) != threading.get_native_id()


IN_A_USER_NAMESPACE = """
import threading
from concurrent.futures import ThreadPoolExecutor
from metadata_wsgi.netns import namespaces

def run():
    inside = namespaces.run_in('inside', threading.get_native_id)
    return 'another thread' if inside != threading.get_native_id() else 'the same thread'

with ThreadPoolExecutor(1, initializer=namespaces.let_this_thread_enter) as pool:
    print(pool.submit(run).result())
"""


def test_thread_that_cannot_leave_a_namespace_does_not_enter_it():
    """root of a user namespace may not return to a network namespace that the user namespace does not own."""
    make = 'mount -t tmpfs tmpfs /run/netns; touch /run/netns/inside; unshare --net=/run/netns/inside true'
    user_namespace = ['unshare', '--user', '--map-root-user', '--mount', '--propagation', 'private']
    script = ['sh', '-ec', f'{make}; exec "$@"', 'sh', sys.executable, '-c', IN_A_USER_NAMESPACE]
    done = subprocess.run([*user_namespace, *script], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == 'another thread\n'


def test_legacy_table_that_is_created_during_a_call_is_noticed(topology):
    """attach reads the rules, adds rules and reads them again during one call."""

    def before_and_after():
        before = ruleset_template.has_legacy_tables()
        subprocess.run(['iptables-legacy', '-t', 'nat', '-L'], check=True, stdout=subprocess.DEVNULL)
        return before, ruleset_template.has_legacy_tables()

    assert namespaces.run_in(topology.router, before_and_after) == (False, True)


def test_interrupted_call_ends_before_the_caller_goes_on(topology, interrupt):
    """Ctrl-C: what is changed in the namespace is known, and can be undone."""
    changes = []

    def interrupted():
        interrupt()
        time.sleep(0.2)
        changes.append('made')

    with pytest.raises(KeyboardInterrupt):
        namespaces.run_in(topology.router, interrupted)
    assert changes == ['made']


def test_socket_stays_in_its_namespace(topology):
    listener = namespaces.run_in(topology.router, lambda: socket.create_server(('10.1.1.1', 9697)))
    with listener, namespaces.run_in(topology.guest, lambda: socket.create_connection(('10.1.1.1', 9697), 5)):
        listener.accept()[0].close()


def test_name_of_a_process_namespace_until_it_is_recreated(topology):
    cat = ['ip', 'netns', 'exec', topology.router, 'cat']
    child = subprocess.Popen(cat, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        child.stdin.write(b'in it now\n')
        child.stdin.flush()
        child.stdout.readline()
        assert namespaces.name_of(child.pid) == topology.router
        subprocess.run(['ip', 'netns', 'delete', topology.router], check=True)
        subprocess.run(['ip', 'netns', 'add', topology.router], check=True)
        assert namespaces.name_of(child.pid) is None
    finally:
        child.communicate()
    assert namespaces.name_of(child.pid) is None


def test_identity_of_a_recreated_namespace_differs(topology):
    former = namespaces.identity(topology.router)
    with namespaces.run_in(topology.router, socket.socket) as opened:
        assert namespaces.identity_of(opened) == former
        topology.remove()
        assert namespaces.identity(topology.router) is None
        topology.make()
        assert namespaces.identity_of(opened) == former != namespaces.identity(topology.router)


def test_program_runs_inside(topology):
    output = SubprocessRunner()(['readlink', '/proc/self/ns/net'], namespace=topology.router)
    assert output == f'net:[{namespaces.identity(topology.router)[1]}]\n'
    with pytest.raises(NetnsError, match='there-is-none'):
        SubprocessRunner()(['true'], namespace='there-is-none')


def detected(namespace):
    """Whether rules of any kind and of iptables-legacy are detected."""
    of_any_kind = any(ruleset_template.has_any_rules(namespace, family) for family in (4, 6))
    return of_any_kind, ruleset_template.has_legacy_rules(namespace)


def test_tables_of_either_kind_of_iptables_are_detected(topology, program):
    assert detected(topology.router) == (
        False,
        False,
    )
    add = ['ip', 'netns', 'exec', topology.router, program, '-A', 'INPUT', '-j', 'ACCEPT']
    subprocess.run(add, check=True)
    assert detected(topology.router) == (
        True,
        program == 'iptables-legacy',
    )
    # Unknown: then both kinds are read.
    assert detected('there-is-none') == (
        True,
        True,
    )


def test_tables_of_ip6tables_only_are_detected(topology, program):
    add = [
        'ip',
        'netns',
        'exec',
        topology.router,
        program.replace('iptables', 'ip6tables'),
        '-A',
        'INPUT',
        '-j',
        'ACCEPT',
    ]
    subprocess.run(add, check=True)
    assert detected(topology.router) == (
        True,
        program == 'iptables-legacy',
    )


def test_interface_names(topology):
    assert {'lo', 'qr-in', 'qg-out'} <= set(interface_state.names(topology.router))
