# SPDX-License-Identifier: Apache-2.0
"""Queries of concurrent lookups are sent in batches."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import InstanceLookupError, LookupUnavailable
from metadata_wsgi.lookup.neutron.batching import QueryBatcher
from metadata_wsgi.lookup.neutron.lookup import NeutronLookup
from metadata_wsgi.pipeline.environ_keys import Source

from .fakes import FakeAuthenticator, port

LONG = 60.0


def wait_until(condition):
    give_up_at = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.001)


class BlockedNeutron:
    """Answers no query before ``release``. Records the keys of each."""

    def __init__(self, error=None):
        self.batches = []
        self.error = error
        self._released = threading.Event()

    def __call__(self, keys, deadline):
        self.batches.append(list(keys))
        assert self._released.wait(LONG)
        if self.error is not None:
            raise self.error
        return [{'key': key} for key in keys]

    def release(self):
        self._released.set()


class Lookups:
    """Lookups in threads. ``results`` has the ports or the error of each by key."""

    def __init__(self, batcher):
        self.batcher = batcher
        self.results = {}
        self._threads = []

    def start(self, key, deadline=None):
        thread = threading.Thread(target=self._run, args=(key, deadline or Deadline.after(LONG)))
        thread.start()
        self._threads.append(thread)

    def _run(self, key, deadline):
        try:
            self.results[key] = self.batcher.ports(key, deadline)
        except Exception as error:
            self.results[key] = error

    def join(self):
        for thread in self._threads:
            thread.join(LONG)
            assert not thread.is_alive()


def batcher(query, **options):
    return QueryBatcher(
        query, **{'filters_of': lambda key: [('name12', str(key))], 'max_length': 50, 'max_in_flight': 1, **options}
    )


def waiting(queries):
    return len(queries._waiting)


def start_waiting(lookups, keys):
    """The first key's query is in flight, the others wait in this order."""
    for number, key in enumerate(keys):
        lookups.start(key)
        wait_until(lambda number=number: waiting(lookups.batcher) == number and lookups.batcher._free == 0)


def test_an_idle_batcher_sends_a_query_at_once():
    neutron = BlockedNeutron()
    neutron.release()
    assert batcher(neutron).ports('a', Deadline.after(LONG)) == [{'key': 'a'}]
    assert neutron.batches == [['a']]


def test_lookups_that_wait_for_a_query_in_flight_are_one_batch():
    neutron = BlockedNeutron()
    lookups = Lookups(batcher(neutron))
    start_waiting(lookups, ['a', 'b', 'c', 'd'])
    neutron.release()
    lookups.join()
    assert neutron.batches == [['a'], ['b', 'c', 'd']]
    assert lookups.results['c'] == [{'key': 'b'}, {'key': 'c'}, {'key': 'd'}]


def test_queries_up_to_the_limit_are_in_flight_together():
    """One query that hangs does not delay the lookups behind it."""
    neutron = BlockedNeutron()
    lookups = Lookups(batcher(neutron, max_in_flight=3))
    for key in 'abc':
        lookups.start(key)
    wait_until(lambda: sorted(neutron.batches) == [['a'], ['b'], ['c']])
    neutron.release()
    lookups.join()


def test_a_batch_has_at_most_the_length_of_one_url():
    neutron = BlockedNeutron()
    lookups = Lookups(batcher(neutron, max_length=20))
    start_waiting(lookups, ['a', 'b', 'c', 'd', 'e', 'f'])
    neutron.release()
    lookups.join()
    assert neutron.batches == [['a'], ['b', 'c'], ['d', 'e'], ['f']]


def test_a_key_of_several_lookups_is_sent_once():
    neutron = BlockedNeutron()
    queries = batcher(neutron, max_length=20)
    lookups = Lookups(queries)
    lookups.start('a')
    wait_until(lambda: neutron.batches)
    for number, key in enumerate(['b', 'b', 'c', 'b', 'c', 'd'], 1):
        lookups.start(key)
        wait_until(lambda number=number: waiting(queries) == number)
    neutron.release()
    lookups.join()
    assert neutron.batches == [['a'], ['b', 'c'], ['d']]


def test_a_key_that_is_longer_than_one_url_is_sent_alone():
    neutron = BlockedNeutron()
    lookups = Lookups(batcher(neutron, max_length=5))
    start_waiting(lookups, ['a', 'b', 'c'])
    neutron.release()
    lookups.join()
    assert neutron.batches == [['a'], ['b'], ['c']]


@pytest.mark.parametrize('error', [LookupUnavailable('down'), InstanceLookupError('403')])
def test_each_lookup_of_a_batch_gets_its_error(error):
    neutron = BlockedNeutron(error)
    lookups = Lookups(batcher(neutron))
    start_waiting(lookups, ['a', 'b', 'c'])
    neutron.release()
    lookups.join()
    assert lookups.results == {'a': error, 'b': error, 'c': error}


def test_a_lookup_waits_no_longer_than_its_deadline():
    neutron = BlockedNeutron()
    lookups = Lookups(batcher(neutron))
    start_waiting(lookups, ['a'])
    with pytest.raises(LookupUnavailable, match='deadline passed'):
        lookups.batcher.ports('b', Deadline.after(0.01))
    assert waiting(lookups.batcher) == 0
    neutron.release()
    lookups.join()
    assert neutron.batches == [['a']]


def test_the_batch_has_the_latest_deadline_of_its_lookups():
    deadlines = []
    first = threading.Event()

    def query(keys, deadline):
        deadlines.append(deadline)
        assert first.wait(LONG)
        return []

    lookups = Lookups(batcher(query))
    lookups.start('a')
    wait_until(lambda: deadlines)
    late = Deadline.after(3 * LONG)
    for number, (key, deadline) in enumerate(
        [('b', Deadline.after(LONG)), ('c', late), ('d', Deadline.after(LONG))], 1
    ):
        lookups.start(key, deadline)
        wait_until(lambda number=number: waiting(lookups.batcher) == number)
    first.set()
    lookups.join()
    assert deadlines[1:] == [late]


def test_a_thread_that_is_ended_in_its_query_does_not_stop_the_waiting_lookups():
    class Ended(BaseException):
        """As GreenletExit."""

    neutron = BlockedNeutron()
    is_first = True

    def query(keys, deadline):
        nonlocal is_first
        ends, is_first = is_first, False
        ports = neutron(keys, deadline)
        if ends:
            raise Ended
        return ports

    queries = batcher(query)
    lookups = Lookups(queries)
    ended = []

    def run():
        try:
            queries.ports('a', Deadline.after(LONG))
        except Ended:
            ended.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: neutron.batches)
    lookups.start('b')
    wait_until(lambda: waiting(queries) == 1)
    neutron.release()
    lookups.join()
    thread.join(LONG)
    assert (ended, lookups.results) == ([True], {'b': [{'key': 'b'}]})


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.integers(1, 4))
def test_every_lookup_gets_the_ports_of_its_key_and_no_slot_is_lost(keys, max_in_flight):
    queries = batcher(lambda keys, deadline: [{'key': key} for key in keys], max_in_flight=max_in_flight)
    failures = []

    def run(key):
        if {'key': key} not in queries.ports(key, Deadline.after(LONG)):
            failures.append(key)

    threads = [threading.Thread(target=run, args=(key,)) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert (failures, queries._free, waiting(queries)) == ([], max_in_flight, 0)


class NeutronWithTenants:
    """Ports of many tenants with the same addresses. Each kind of query is answered only after its event is set."""

    auth = FakeAuthenticator()

    def __init__(self, tenants):
        self.tenants = tenants
        self.queries = []
        self.routers, self.addresses = threading.Event(), threading.Event()

    def ports(self, query, deadline, on_query, pages=100):
        self.queries.append(query)
        values = {}
        for name, value in query:
            values.setdefault(name, set()).add(value)
        if 'device_id' in values:
            assert self.routers.wait(LONG)
            return [
                {'id': 'p', 'device_id': f'router-{tenant}', 'network_id': f'network-{tenant}'}
                for tenant in range(self.tenants)
                if f'router-{tenant}' in values['device_id']
            ]
        assert self.addresses.wait(LONG)
        addresses = {value.removeprefix('ip_address=') for value in values['fixed_ips']}
        return [
            port(
                id=f'port-{tenant}-{address}', device_id=f'instance-{tenant}-{address}', project_id=f'project-{tenant}',
                network_id=f'network-{tenant}', fixed_ips=[{'ip_address': address}],
            )
            for tenant in range(self.tenants)
            if f'network-{tenant}' in values['network_id']
            for address in addresses
        ]  # fmt: skip


def test_a_boot_storm_is_a_few_queries_and_no_tenant_gets_the_instance_of_another():
    neutron = NeutronWithTenants(tenants=10)
    lookup = NeutronLookup(neutron)
    found = {}

    def find(tenant, address):
        found[tenant, address] = lookup.find(Source(address, router_id=f'router-{tenant}'), Deadline.after(LONG))

    wanted = [(tenant, f'10.1.1.{host}') for tenant in range(10) for host in range(2, 12)]
    threads = [threading.Thread(target=find, args=one) for one in wanted]
    for thread in threads:
        thread.start()
    wait_until(lambda: waiting(lookup._router_queries) == len(wanted) - 4)
    neutron.routers.set()
    wait_until(lambda: waiting(lookup._address_queries['fixed_ips']) == len(wanted) - 4)
    neutron.addresses.set()
    for thread in threads:
        thread.join(LONG)
    assert {one: [instance.instance_id for instance in found[one]] for one in wanted} == {
        (tenant, address): [f'instance-{tenant}-{address}'] for tenant, address in wanted
    }
    # Of each kind four at once, then one for the 96 lookups that waited.
    assert len(neutron.queries) == 4 + 1 + 4 + 1


def test_concurrent_lookups_without_a_result_are_one_visibility_check():
    """In a storm each lookup of an address without a port would list a hundred ports otherwise."""
    checks = []
    released = threading.Event()

    class Empty:
        auth = FakeAuthenticator()

        @staticmethod
        def ports(query, deadline, on_query, pages=100):
            if ('device_owner', 'network:dhcp') in query or ('sort_key', 'device_owner') in query:
                return [{'id': 'dhcp', 'network_id': 'network-1', 'fixed_ips': [{'ip_address': '10.1.1.254'}]}]
            if ('limit', '100') not in query:
                return []
            checks.append(query)
            assert released.wait(LONG)
            return [{'id': 'p', 'project_id': 'of another'}]

    lookup = NeutronLookup(Empty())
    results = []

    def find(number):
        source = Source(f'10.1.1.{number}', network_id='network-1')
        results.append(lookup.find(source, Deadline.after(LONG)))

    threads = [threading.Thread(target=find, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    wait_until(lambda: checks)
    released.set()
    for thread in threads:
        thread.join(LONG)
    assert (results, len(checks)) == ([()] * 20, 1)
