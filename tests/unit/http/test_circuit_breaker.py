# SPDX-License-Identifier: Apache-2.0
import pytest

from metadata_wsgi import limits
from metadata_wsgi.errors import NotSent
from metadata_wsgi.http.circuit_breaker import CircuitBreaker
from tests.fakes import FakeClock


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def open_circuit(clock):
    circuit = CircuitBreaker(clock)
    for _ in range(limits.CIRCUIT_OPEN_FAILURES):
        assert circuit.allows_attempt()
        circuit.start_attempt()
        circuit.record_failure(NotSent('refused'))
    return circuit


def test_an_open_circuit_allows_no_attempt_and_keeps_the_error(open_circuit):
    assert not open_circuit.allows_attempt()
    assert open_circuit.last_error == 'refused'


def test_an_open_circuit_allows_one_attempt_after_each_interval(open_circuit, clock):
    for _ in range(3):
        clock.sleep(limits.CIRCUIT_PROBE_INTERVAL_S)
        assert open_circuit.allows_attempt()
        open_circuit.start_attempt()
        assert not open_circuit.allows_attempt()
        clock.sleep(limits.CONNECT_TIMEOUT_S)
        assert not open_circuit.allows_attempt()
        open_circuit.record_failure(NotSent('timed out'))
        assert not open_circuit.allows_attempt()


def test_an_open_circuit_first_allows_an_attempt_with_enough_time(open_circuit, clock):
    """A client may shorten the deadline of its own requests. They must not take the attempts of the others."""
    clock.sleep(limits.CIRCUIT_PROBE_INTERVAL_S)
    assert not open_circuit.allows_attempt(has_time=False)
    assert open_circuit.allows_attempt()
    clock.sleep(limits.CIRCUIT_PROBE_INTERVAL_S)
    assert open_circuit.allows_attempt(has_time=False)
    open_circuit.record_failure(NotSent('no time'), had_time=False)
    open_circuit.record_connected()
    assert open_circuit.allows_attempt(has_time=False)


def test_an_attempt_that_never_ends_does_not_keep_the_circuit_open(open_circuit, clock):
    clock.sleep(limits.CIRCUIT_PROBE_INTERVAL_S)
    open_circuit.start_attempt()
    clock.sleep(limits.CONNECT_TIMEOUT_S + limits.CIRCUIT_PROBE_INTERVAL_S)
    assert open_circuit.allows_attempt()


def test_a_connection_closes_the_circuit(open_circuit):
    open_circuit.record_connected()
    assert open_circuit.allows_attempt()
    open_circuit.record_failure(NotSent('refused'))
    assert open_circuit.allows_attempt()


def test_failures_of_attempts_without_time_do_not_open_the_circuit(clock):
    circuit = CircuitBreaker(clock)
    for _ in range(20):
        circuit.record_failure(NotSent('no time'), had_time=False)
    assert circuit.allows_attempt()


def test_after_a_connection_the_circuit_opens_after_the_same_number_of_failures(open_circuit):
    open_circuit.record_connected()
    for _ in range(limits.CIRCUIT_OPEN_FAILURES):
        assert open_circuit.allows_attempt()
        open_circuit.record_failure(NotSent('refused'))
    assert not open_circuit.allows_attempt()
