# SPDX-License-Identifier: Apache-2.0
"""Many clients at once before a Nova that fails or is down: how often Nova is tried, and what the clients get.

Each client is a greenlet on a simulated clock, so nine seconds of five hundred clients take less than one.
"""

import heapq
import itertools
from collections import Counter

import greenlet
import pytest

from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import MaybeSent, NotSent
from metadata_wsgi.http import message
from metadata_wsgi.nova_proxy.upstream import UpstreamApp
from metadata_wsgi.pipeline import environ_keys

CLIENTS = 500


class Simulation:
    """A clock, and greenlets that sleep on it."""

    def __init__(self):
        self.now_s = 0.0
        self._sleeping = []
        self._order = itertools.count()

    def __call__(self):
        return self.now_s

    def sleep(self, seconds):
        self._wake_after(seconds, greenlet.getcurrent())
        greenlet.getcurrent().parent.switch()

    def run(self, *functions):
        """One after the other, within a second."""
        for number, function in enumerate(functions):
            self._wake_after(number / len(functions), greenlet.greenlet(function))
        while self._sleeping:
            self.now_s, _, woken = heapq.heappop(self._sleeping)
            woken.switch()

    def _wake_after(self, seconds, sleeper):
        heapq.heappush(self._sleeping, (self.now_s + seconds, next(self._order), sleeper))


class Nova:
    """A HttpClient: ``outcome(now_s)`` is a status or an exception; each attempt takes ``takes_s``."""

    name = 'nova'

    def __init__(self, simulation, outcome, takes_s=0.01):
        self._simulation, self._outcome, self._takes_s = simulation, outcome, takes_s
        self.attempts_s = []

    def send_request(self, request, deadline):
        self.attempts_s.append(self._simulation.now_s)
        self._simulation.sleep(min(self._takes_s, deadline.remaining_s()))
        outcome = self._outcome(self._simulation.now_s)
        if isinstance(outcome, Exception):
            raise outcome
        return message.Response(outcome, 'x', [], [])


def run(outcome, clients=CLIENTS, takes_s=0.01):
    """Nova, and how many clients got which status."""
    simulation = Simulation()
    nova = Nova(simulation, outcome, takes_s)
    app = UpstreamApp([nova], clock=simulation, sleep=simulation.sleep)
    statuses = Counter()

    def client():
        environ = {
            environ_keys.DEADLINE: Deadline.after(9.0, simulation),
            environ_keys.SIGNED_IDENTITY: environ_keys.SignedIdentity(
                environ_keys.Instance('i', 'p', 'q'), '10.1.1.2', ('s',)
            ),
            'REQUEST_METHOD': 'GET', 'RAW_URI': '/openstack', 'wsgi.input': None,
        }  # fmt: skip
        app(environ, lambda status, headers, exc_info=None: statuses.update([status[:3]]))

    simulation.run(*[client] * clients)
    assert simulation.now_s <= 10.0
    nova.retry_budget = app._retry_budget
    return nova, statuses


@pytest.mark.parametrize('outcome', [500, 503, MaybeSent('broken')])
def test_a_nova_that_fails_every_request_gets_a_bounded_multiple_of_the_load(outcome):
    nova, statuses = run(lambda now_s: outcome)
    assert statuses == {'503' if isinstance(outcome, Exception) else str(outcome): CLIENTS}
    assert len(nova.attempts_s) <= 2 * CLIENTS + 200


@pytest.mark.parametrize('outcome', [500, MaybeSent('broken')])
def test_a_single_client_is_retried_until_the_deadline(outcome):
    nova, _ = run(lambda now_s: outcome, clients=1)
    assert len(nova.attempts_s) > 8
    assert nova.attempts_s[-1] > 7


@pytest.mark.parametrize('takes_s', [0.0001, 3.0], ids=['refused', 'no reply'])
def test_a_nova_that_is_down_is_tried_by_one_request_at_a_time(takes_s):
    nova, statuses = run(lambda now_s: NotSent('down'), takes_s=takes_s)
    assert statuses == {'503': CLIENTS}
    # Attempts that started before the first one failed; then one at a time.
    together = [at_s for at_s in nova.attempts_s if at_s <= takes_s]
    later = [at_s for at_s in nova.attempts_s if at_s > takes_s]
    assert len(together) == (CLIENTS if takes_s > 1 else 1)
    assert 1 <= len(later) <= 5 + 10.0 / 0.5
    assert all(after_s - before_s >= 0.5 for before_s, after_s in itertools.pairwise(later[5:]))
    # Requests that wait for a host take no retries out of the budget.
    assert sum(iter(nova.retry_budget.take_retry, False)) > 90


def test_all_clients_succeed_and_do_not_storm_a_nova_that_returns():
    nova, statuses = run(lambda now_s: 200 if now_s > 4 else NotSent('down'))
    assert statuses == {'200': CLIENTS}
    after = [at_s for at_s in nova.attempts_s if at_s > 4]
    assert len(after) <= CLIENTS + 5
    first_s = after[0]
    # One at first; then the load grows with each response.
    assert len([at_s for at_s in after if at_s <= first_s + 0.01]) <= 4
    assert len([at_s for at_s in after if at_s <= first_s + 0.05]) <= 100


def test_all_clients_succeed_when_a_nova_that_answered_500_returns():
    nova, statuses = run(lambda now_s: 200 if now_s > 4 else 500)
    assert statuses == {'200': CLIENTS}
    assert len(nova.attempts_s) <= 3 * CLIENTS + 200
