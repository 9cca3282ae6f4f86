# SPDX-License-Identifier: Apache-2.0
"""The contract of the chaos tests: 503 with Retry-After only if the fault lasted longer than the deadline."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.chaos import topology
from tests.chaos.experiment import judge, longest_gap_s
from tests.chaos.faults.fault import FRONT_IS_GONE, FRONT_RESTARTS, NOVAS_STATUS, ROUTER_IS_AWAY, Fault
from tests.chaos.load import CUT, OK, RETRY_AFTER, TIMED_OUT, Exchange

ROUTERS = topology.make_routers(2, 2)
CLIENTS = [client for router in ROUTERS for client in router.clients]
HOST = SimpleNamespace(routers=ROUTERS, clients=CLIENTS, deadline_s=9.0)
FIRST, SECOND, OF_OTHER_ROUTER = 0, 1, 2
REPAIRED = Fault('Nova down', lambda host: None, lambda host: None)
REPAIRS_ITSELF = Fault('restart agent', lambda host: None)


def served(client, at_s):
    return Exchange(at_s - 0.1, at_s, client, '/openstack', OK, CLIENTS[client].instance_id)


def failed(outcome, client, started_s, ended_s):
    return Exchange(started_s, ended_s, client, '/openstack', outcome, '')


def broken(fault, *exchanges, for_s=5.0, injections=1):
    return judge(HOST, fault, exchanges, for_s=for_s, injections=injections)


def test_longest_gap():
    assert longest_gap_s([1.0, 2.0, 6.0, 20.0], 0.0, 9.0) == 4.0
    assert longest_gap_s([], 1.0, 9.0) == 8.0


@pytest.mark.parametrize(('for_s', 'is_broken'), [(5.0, True), (60.0, False)])
def test_503_is_right_only_during_a_fault_that_outlasts_the_deadline(for_s, is_broken):
    assert bool(broken(REPAIRED, failed(RETRY_AFTER, FIRST, 0.0, 8.7), for_s=for_s)) == is_broken


def test_503_where_the_host_repairs_itself_is_right_if_no_instance_of_the_router_was_served():
    unserved = failed(RETRY_AFTER, FIRST, 0.0, 9.0)
    assert not broken(REPAIRS_ITSELF, served(SECOND, 0.5), unserved, served(SECOND, 9.1))
    assert not broken(REPAIRS_ITSELF, unserved, served(OF_OTHER_ROUTER, 5.0))
    assert broken(REPAIRS_ITSELF, unserved, served(SECOND, 5.0)) == [f'1 x {RETRY_AFTER}']


def test_other_failures_are_broken_except_those_that_the_fault_allows():
    cut, timeout = failed(CUT, FIRST, 1.0, 1.1), failed(TIMED_OUT, FIRST, 1.0, 11.0)
    assert broken(REPAIRS_ITSELF, cut, timeout) == [f'1 x {CUT}', f'1 x {TIMED_OUT}']
    restarts = replace(REPAIRS_ITSELF, allows=FRONT_RESTARTS)
    assert broken(restarts, timeout) == []
    assert broken(restarts, timeout, served(SECOND, 6.0)) == [f'1 x {TIMED_OUT}']
    assert broken(restarts, cut) == [f'1 x {CUT}']
    nova = replace(REPAIRED, allows=NOVAS_STATUS)
    assert broken(nova, failed('status 500', FIRST, 0.0, 9.0), for_s=60.0) == []
    assert broken(nova, failed('status 500', FIRST, 0.0, 4.0), for_s=5.0) == ['1 x status 500']


def test_cut_is_allowed_once_for_each_instance_and_injection():
    front = replace(REPAIRS_ITSELF, allows=FRONT_IS_GONE)
    cuts = [failed(CUT, FIRST, at_s, at_s) for at_s in (1.0, 2.0)]
    assert broken(front, *cuts, injections=2) == []
    assert broken(front, *cuts, injections=1)


def test_instances_of_other_routers_must_notice_nothing():
    away = replace(REPAIRED, allows=ROUTER_IS_AWAY)
    assert broken(away, failed(CUT, FIRST, 1.0, 1.1)) == []
    assert broken(away, failed(CUT, OF_OTHER_ROUTER, 1.0, 1.1)) == [f'1 x {CUT}']


def test_metadata_of_another_instance_is_never_right():
    wrong = served(FIRST, 1.0)._replace(instance_id=CLIENTS[SECOND].instance_id)
    assert broken(replace(REPAIRED, allows=ROUTER_IS_AWAY), wrong, for_s=60.0) == [
        "1 x got another instance's metadata"
    ]
