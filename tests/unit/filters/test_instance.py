# SPDX-License-Identifier: Apache-2.0
import logging

import pytest
import webtest

from metadata_wsgi import instruments, limits
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import ConfigError, IncompleteResult, InstanceLookupError, LookupUnavailable
from metadata_wsgi.filters.instance import InstanceFilter, filter_factory
from metadata_wsgi.pipeline import environ_keys
from tests.fakes import FakeClock, FakeLookup

SOURCE = environ_keys.Source('10.1.1.2', router_id='r1')
ONE = environ_keys.Instance('i1', 'p1', 'port1')
OTHER = environ_keys.Instance('i2', 'p2', 'port2')


def respond_with_instance(environ, start_response):
    body = str(environ[environ_keys.INSTANCE]).encode()
    start_response('200 OK', [('Content-Type', 'text/plain'), ('Content-Length', str(len(body)))])
    return [body]


def get(lookup, within_s=9.0, status=200, **facts):
    clock = FakeClock()
    app = webtest.TestApp(InstanceFilter(respond_with_instance, lookup=lookup, sleep=clock.sleep))
    environ = {
        environ_keys.SOURCE: SOURCE,
        environ_keys.DEADLINE: Deadline.after(within_s, clock),
        **facts,
    }
    return app.get('/', extra_environ=environ, status=status), clock


def test_exactly_one_instance_is_set():
    lookup = FakeLookup([ONE])
    response, _ = get(lookup)
    assert response.text == 'i1 of project p1, port port1'
    assert [source for source, _ in lookup.calls] == [SOURCE]


def test_no_instance_is_a_404():
    get(FakeLookup([]), status=404)


def test_several_instances_are_a_404_and_a_warning_that_names_the_ports(caplog):
    get(FakeLookup([OTHER, ONE]), status=404)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        (
            'WARNING',
            (
                '404 for 10.1.1.2 behind router r1, because 2 instances match: '
                'ports port1 (instance i1, project p1), port2 (instance i2, project p2)'
            ),
        )
    ]


def test_retry_while_the_lookup_is_unavailable():
    lookup = FakeLookup(LookupUnavailable('no route'), LookupUnavailable('no route'), [ONE])
    get(lookup)
    assert len(lookup.calls) == 3


def test_retry_ends_at_the_deadline_with_a_503(caplog):
    """Never 404, which clients take for 'no metadata here'."""
    response, clock = get(FakeLookup(LookupUnavailable('no route to Quantum')), status=503)
    assert response.headers['Retry-After'] == '1'
    assert sum(clock.slept) <= 9.0
    assert 'the lookup of 10.1.1.2 behind router r1 failed: no route to Quantum' in caplog.text
    assert 'Quantum' not in response.text


@pytest.mark.parametrize(('within_s', 'count'), [(limits.CIRCUIT_MIN_TIME_S, 1), (0.9, 0), (0.0, 0)])
def test_a_lookup_with_too_little_time_is_not_counted_as_unavailable(caplog, monkeypatch, within_s, count):
    """A client may shorten the deadline of its own request. This must cause no alert about Neutron."""
    observed = []
    monkeypatch.setattr(instruments.LOOKUP_SECONDS, 'observe', lambda seconds, result: observed.append(result))
    get(FakeLookup(LookupUnavailable('the deadline passed')), within_s=within_s, status=503)
    assert observed == ['unavailable'] * count
    assert len(caplog.records) == count


def test_a_lookup_that_fails_gets_at_most_twice_the_requests_retry_budget():
    """Beside the budget that was saved, and what each second adds: here no time passes between the requests."""
    lookup = FakeLookup(LookupUnavailable('Neutron answered 500'))
    clock = FakeClock()
    app = webtest.TestApp(InstanceFilter(respond_with_instance, lookup=lookup, sleep=clock.sleep, clock=lambda: 1000.0))
    for _ in range(300):
        keys = {environ_keys.SOURCE: SOURCE, environ_keys.DEADLINE: Deadline.after(9, clock)}
        app.get('/', extra_environ=keys, status=503)
    assert 300 < len(lookup.calls) <= 2 * 300 + limits.RETRY_BUDGET_MAX


def test_no_retry_of_a_permanent_error():
    lookup = FakeLookup(InstanceLookupError('the role shows no ports'))
    get(lookup, status=503)
    assert len(lookup.calls) == 1


def test_timeout_of_one_attempt_leaves_time_for_another():
    lookup = FakeLookup([ONE])
    get(lookup)
    assert lookup.calls[0][1].remaining_s() == pytest.approx(6.0)


def test_log_of_a_failed_lookup_is_throttled(caplog):
    clock = FakeClock()
    app = webtest.TestApp(
        InstanceFilter(respond_with_instance, lookup=FakeLookup(InstanceLookupError('no rights')), sleep=clock.sleep)
    )
    with caplog.at_level(logging.ERROR):
        for _ in range(5):
            deadline = Deadline.after(9, clock)
            app.get('/', extra_environ={environ_keys.SOURCE: SOURCE, environ_keys.DEADLINE: deadline}, status=503)
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ('error', 'is_of_source'),
    [
        (IncompleteResult('no port of router r1'), True),
        (LookupUnavailable('no route'), False),
        (InstanceLookupError('no rights'), False),
    ],
    ids=['incomplete', 'unavailable', 'refused'],
)
def test_failure_is_of_the_source_if_neutron_does_not_show_its_router(error, is_of_source):
    response, _ = get(FakeLookup(error), status=503)
    assert response.request.environ[environ_keys.FAILURE].is_of_source == is_of_source


class FailingLookup:
    """Fails for each router with its error."""

    def __init__(self, errors):
        self._errors = errors

    def find(self, source, deadline):
        raise self._errors[source.router_id]


def test_log_of_a_router_that_always_fails_is_throttled_separately(caplog):
    """It exists on the host, but not in Neutron. Other faults are logged too, each kind once."""
    unavailable = LookupUnavailable('no route to Quantum')
    errors = {
        'deleted': IncompleteResult('no port of router deleted'),
        'also-deleted': IncompleteResult('no port of router also-deleted'),
        'r3': unavailable,
        'r4': unavailable,
        'r5': InstanceLookupError('no rights'),
    }
    clock = FakeClock()
    app = webtest.TestApp(InstanceFilter(respond_with_instance, lookup=FailingLookup(errors), sleep=clock.sleep))
    with caplog.at_level(logging.ERROR):
        for router in ('deleted', *errors, *errors):
            source = environ_keys.Source('10.1.1.2', router_id=router)
            keys = {environ_keys.SOURCE: source, environ_keys.DEADLINE: Deadline.after(9, clock)}
            app.get('/', extra_environ=keys, status=503)
    assert [record.getMessage().partition(' failed: ')[2] for record in caplog.records] == [
        'no port of router deleted', 'no port of router also-deleted', 'no route to Quantum', 'no rights',
    ]  # fmt: skip


@pytest.mark.parametrize(('outcome', 'level'), [([], 'INFO'), ([ONE, OTHER], 'WARNING')], ids=['none', 'several'])
def test_log_of_a_404_is_throttled_for_each_router_and_network(outcome, level, caplog):
    """An instance can send any number of requests, from any number of addresses."""
    clock = FakeClock()
    app = webtest.TestApp(InstanceFilter(respond_with_instance, lookup=FakeLookup(outcome), sleep=clock.sleep))
    with caplog.at_level(logging.INFO):
        for router in ('r1', 'r2'):
            for number in range(20):
                source = environ_keys.Source(f'10.1.1.{number}', router_id=router)
                keys = {environ_keys.SOURCE: source, environ_keys.DEADLINE: Deadline.after(9, clock)}
                app.get('/', extra_environ=keys, status=404)
    assert [record.levelname for record in caplog.records] == [level] * 2
    assert ['router r1' in record.getMessage() for record in caplog.records] == [True, False]


def test_an_instance_that_is_set_already_stays():
    lookup = FakeLookup([ONE])
    response, _ = get(lookup, **{environ_keys.INSTANCE: OTHER})
    assert 'i2' in response.text
    assert lookup.calls == []


def test_an_unknown_directory_is_refused(tmp_path):
    path = tmp_path / 'agent.ini'
    path.write_text('[DEFAULT]\ndirectory = nuetron\n')
    with pytest.raises(ConfigError) as raised:
        filter_factory({'config_file': str(path)})
    assert str(raised.value) == 'directory = nuetron: there is no such lookup; choose one of neutron, quantum, static'
