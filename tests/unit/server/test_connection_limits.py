# SPDX-License-Identifier: Apache-2.0
"""How many connections a client may hold, and which idle connection is closed for a new one."""

from metadata_wsgi.pipeline.environ_keys import Namespace
from metadata_wsgi.server.connection_limits import ConnectionLimits

RED, BLUE = Namespace('red'), Namespace('blue')


class Connection:
    def __init__(self, *, closed_by_client=False):
        self.is_closed = False
        self._closed_by_client = closed_by_client

    def shutdown(self, how):
        if self._closed_by_client:
            raise OSError
        self.is_closed = True


def idle(limits, namespace, address, connection=None):
    """A connection with half a header."""
    connection = connection or Connection()
    groups = limits.admit(namespace, address)
    assert groups is not None
    limits.mark_idle(connection, groups)
    return connection


def test_connections_of_an_address_are_limited_until_one_is_released():
    limits = ConnectionLimits(per_address=2, total=100)
    first, second = limits.admit(RED, '10.1.1.2'), limits.admit(RED, '10.1.1.2')
    assert None not in (first, second)
    assert limits.admit(RED, '10.1.1.2') is None
    limits.release(first)
    assert limits.admit(RED, '10.1.1.2') is not None
    assert len(limits) == 2


def test_at_its_limit_an_address_loses_its_longest_idle_connection():
    limits = ConnectionLimits(per_address=2, total=100)
    neighbour = idle(limits, RED, '10.1.1.3')
    connections = [idle(limits, RED, '10.1.1.2') for _ in range(3)]
    assert [connection.is_closed for connection in (neighbour, *connections)] == [False, True, False, False]


def test_the_same_address_behind_another_router_is_another_client():
    limits = ConnectionLimits(per_address=1, total=100)
    assert limits.admit(RED, '10.1.1.2')
    assert limits.admit(BLUE, '10.1.1.2')


def test_ipv4_and_ipv4_mapped_neighbours_are_counted_separately():
    limits = ConnectionLimits(per_address=1, total=100)
    assert all(limits.admit(RED, f'10.1.1.{last}') for last in range(2, 20))
    assert all(limits.admit(RED, f'::ffff:10.1.1.{last}') for last in range(20, 40))


def test_the_addresses_of_a_64_hold_at_most_twice_the_limit():
    limits = ConnectionLimits(per_address=2, total=100)
    connections = [idle(limits, RED, f'2001:db8::{last:x}') for last in range(1, 9)]
    assert [connection.is_closed for connection in connections] == [True] * 4 + [False] * 4
    assert not idle(limits, RED, '2001:db8:0:1::1').is_closed


def test_link_local_addresses_are_counted_one_by_one_and_for_each_link():
    """All instances of all networks of a router are in fe80::/64."""
    limits = ConnectionLimits(per_address=1, total=100)
    assert all(limits.admit(RED, f'fe80::{last:x}%2') for last in range(1, 20))
    assert limits.admit(RED, 'fe80::1%2') is None
    assert limits.admit(RED, 'fe80::1%3')


def test_complete_requests_from_many_addresses_do_not_refuse_other_clients():
    """An attacker with two addresses of each kind; on each connection a request is in progress."""
    limits = ConnectionLimits(per_address=512, total=4095)
    for address in ('10.1.1.66', '10.1.1.67', 'fe80::66%2', 'fe80::67%2', '2001:db8:0:6::1', '2001:db8:0:6::2'):
        admitted = [limits.admit(RED, address) for _ in range(600)]
        assert None in admitted
    assert all(limits.admit(RED, client) for client in ('10.1.1.2', 'fe80::2%2', 'fe80::66%3', '2001:db8:0:7::1'))


def test_the_first_group_identifies_the_client():
    """Concurrent requests are counted by it: an instance may use every address of a global /64."""
    limits = ConnectionLimits(per_address=9, total=99)
    clients = ['10.1.1.2', '10.1.1.3', '::ffff:10.1.1.2', 'fe80::1%2', 'fe80::2%2', '2001:db8::1', '2001:db8:0:1::1']
    assert len({limits.admit(RED, client)[0] for client in clients}) == len(clients)
    assert limits.admit(RED, '2001:db8::1')[0] == limits.admit(RED, '2001:db8::2')[0]


def test_a_new_connection_is_refused_if_no_connection_of_its_64_is_idle():
    limits = ConnectionLimits(per_address=1, total=100)
    for last in (1, 2):
        limits.mark_active(idle(limits, RED, f'2001:db8::{last}'))
    assert limits.admit(RED, '2001:db8::3') is None
    assert limits.admit(RED, '2001:db8:0:1::3')


def test_a_full_worker_closes_the_longest_idle_connection_of_the_namespace_with_most_idle():
    limits = ConnectionLimits(per_address=2, total=5)
    other = idle(limits, BLUE, '10.1.1.2')
    connections = [idle(limits, RED, f'10.1.1.{last}') for last in range(2, 6)]
    limits.mark_idle(connections[0], limits.admit(RED, '10.1.1.2') or ())
    new = idle(limits, BLUE, '10.1.1.3')
    assert [connection.is_closed for connection in (other, new)] == [False, False]
    assert any(connection.is_closed for connection in connections)


def test_a_connection_that_was_active_is_the_shortest_idle():
    limits = ConnectionLimits(per_address=1, total=2)
    first, second = Connection(), Connection()
    groups = limits.admit(RED, '10.1.1.2')
    limits.mark_idle(first, groups)
    idle(limits, RED, '10.1.1.3', second)
    limits.mark_active(first)
    limits.mark_idle(first, groups)
    idle(limits, RED, '10.1.1.4')
    assert (first.is_closed, second.is_closed) == (False, True)


def test_an_incomplete_request_does_not_make_a_connection_active():
    limits = ConnectionLimits(per_address=1, total=2)
    first, second = Connection(), Connection()
    groups = limits.admit(RED, '10.1.1.2')
    limits.mark_idle(first, groups)
    idle(limits, RED, '10.1.1.3', second)
    limits.mark_idle(first, groups)
    idle(limits, RED, '10.1.1.4')
    assert (first.is_closed, second.is_closed) == (True, False)


def test_an_idle_connection_that_the_client_has_closed_is_no_error():
    limits = ConnectionLimits(per_address=1, total=1)
    idle(limits, RED, '10.1.1.2', Connection(closed_by_client=True))
    assert limits.admit(RED, '10.1.1.3')


def test_a_full_worker_without_idle_connections_admits_a_new_one():
    """It waits for a greenlet."""
    limits = ConnectionLimits(per_address=1, total=1)
    assert limits.admit(RED, '10.1.1.2')
    assert limits.admit(RED, '10.1.1.3')
