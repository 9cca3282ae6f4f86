# SPDX-License-Identifier: Apache-2.0
"""How many connections a guest may hold, and whose is closed for whom."""

from metadata_wsgi.pipeline.environ_keys import Namespace
from metadata_wsgi.server.connection_limits import ConnectionLimits

RED, BLUE = Namespace('red'), Namespace('blue')


class RawSocket:
    def __init__(self, *, gone=False):
        self.ended = False
        self._gone = gone

    def shutdown(self, how):
        if self._gone:
            raise OSError
        self.ended = True


def waiting(shares, namespace, address, connection=None):
    """A connection that sent half a head."""
    connection = connection or RawSocket()
    keys = shares.take(namespace, address)
    assert keys is not None
    shares.waits(connection, keys)
    return connection


def test_an_address_holds_so_many_and_gets_them_back():
    shares = ConnectionLimits(each=2, total=100)
    first, second = shares.take(RED, '10.1.1.2'), shares.take(RED, '10.1.1.2')
    assert None not in (first, second)
    assert shares.take(RED, '10.1.1.2') is None
    shares.release(first)
    assert shares.take(RED, '10.1.1.2') is not None
    assert len(shares) == 2


def test_an_address_that_holds_all_it_may_loses_what_it_leaves_waiting_longest():
    shares = ConnectionLimits(each=2, total=100)
    neighbour = waiting(shares, RED, '10.1.1.3')
    held = [waiting(shares, RED, '10.1.1.2') for _ in range(3)]
    assert [one.ended for one in (neighbour, *held)] == [False, True, False, False]


def test_the_same_address_behind_another_router_is_another_guest():
    shares = ConnectionLimits(each=1, total=100)
    assert shares.take(RED, '10.1.1.2')
    assert shares.take(BLUE, '10.1.1.2')


def test_v4_neighbours_and_v4_mapped_ones_are_counted_apart():
    shares = ConnectionLimits(each=1, total=100)
    assert all(shares.take(RED, f'10.1.1.{last}') for last in range(2, 20))
    assert all(shares.take(RED, f'::ffff:10.1.1.{last}') for last in range(20, 40))


def test_many_addresses_of_one_64_hold_no_more_than_two_shares():
    shares = ConnectionLimits(each=2, total=100)
    held = [waiting(shares, RED, f'fe80::{last:x}%qr-1') for last in range(1, 9)]
    assert [one.ended for one in held] == [True] * 4 + [False] * 4
    assert not waiting(shares, RED, '2001:db8::1').ended


def test_where_none_of_the_64_waits_the_new_one_is_refused():
    shares = ConnectionLimits(each=1, total=100)
    for last in (1, 2):
        one = waiting(shares, RED, f'2001:db8::{last}')
        shares.speaks(one)
    assert shares.take(RED, '2001:db8::3') is None
    assert shares.take(RED, '2001:db8:0:1::3')


def test_a_full_worker_closes_who_waits_longest_where_most_wait():
    shares = ConnectionLimits(each=2, total=5)
    other = waiting(shares, BLUE, '10.1.1.2')
    held = [waiting(shares, RED, f'10.1.1.{last}') for last in range(2, 6)]
    shares.waits(held[0], shares.take(RED, '10.1.1.2') or ())
    new = waiting(shares, BLUE, '10.1.1.3')
    assert [one.ended for one in (other, new)] == [False, False]
    assert any(one.ended for one in held)


def test_who_waits_anew_is_last():
    shares = ConnectionLimits(each=1, total=2)
    first, second = RawSocket(), RawSocket()
    keys = shares.take(RED, '10.1.1.2')
    shares.waits(first, keys)
    waiting(shares, RED, '10.1.1.3', second)
    shares.speaks(first)
    shares.waits(first, keys)
    waiting(shares, RED, '10.1.1.4')
    assert (first.ended, second.ended) == (False, True)


def test_who_says_a_little_and_waits_on_stays_first():
    """Half a head more is not a word."""
    shares = ConnectionLimits(each=1, total=2)
    first, second = RawSocket(), RawSocket()
    keys = shares.take(RED, '10.1.1.2')
    shares.waits(first, keys)
    waiting(shares, RED, '10.1.1.3', second)
    shares.waits(first, keys)
    waiting(shares, RED, '10.1.1.4')
    assert (first.ended, second.ended) == (True, False)


def test_one_that_has_gone_by_itself_is_no_fault():
    shares = ConnectionLimits(each=1, total=1)
    waiting(shares, RED, '10.1.1.2', RawSocket(gone=True))
    assert shares.take(RED, '10.1.1.3')


def test_where_nobody_waits_a_full_worker_lets_the_new_one_wait():
    shares = ConnectionLimits(each=1, total=1)
    assert shares.take(RED, '10.1.1.2')
    assert shares.take(RED, '10.1.1.3')
