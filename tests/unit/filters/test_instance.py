# SPDX-License-Identifier: Apache-2.0
import logging

import pytest
import webtest

from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import ConfigError, InstanceLookupError, LookupUnavailable
from metadata_wsgi.filters.instance import InstanceFilter, filter_factory
from metadata_wsgi.pipeline import environ_keys
from tests.fakes import FakeClock, FakeLookup

SOURCE = environ_keys.Source('10.1.1.2', router_id='r1')
ONE = environ_keys.Instance('i1', 'p1', 'port1')
OTHER = environ_keys.Instance('i2', 'p2', 'port2')


def tells(environ, start_response):
    body = str(environ[environ_keys.INSTANCE]).encode()
    start_response('200 OK', [('Content-Type', 'text/plain'), ('Content-Length', str(len(body)))])
    return [body]


def ask(directory, within_s=9.0, status=200, **facts):
    clock = FakeClock()
    app = webtest.TestApp(InstanceFilter(tells, directory=directory, sleep=clock.sleep))
    environ = {
        environ_keys.SOURCE: SOURCE,
        environ_keys.DEADLINE: Deadline.after(within_s, clock),
        **facts,
    }
    return app.get('/', extra_environ=environ, status=status), clock


def test_the_one_that_fits_is_written_down():
    directory = FakeLookup([ONE])
    response, _ = ask(directory)
    assert response.text == 'i1 of project p1, port port1'
    assert [source for source, _ in directory.asked] == [SOURCE]


def test_none_is_a_404():
    ask(FakeLookup([]), status=404)


def test_several_are_a_404_and_a_warning_that_names_the_ports(caplog):
    ask(FakeLookup([OTHER, ONE]), status=404)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        (
            'WARNING',
            (
                '2 instances fit 10.1.1.2 behind router r1, so none is told: '
                'ports port1 (instance i1, project p1), port2 (instance i2, project p2)'
            ),
        )
    ]


def test_a_directory_that_is_away_is_asked_again():
    directory = FakeLookup(LookupUnavailable('no route'), LookupUnavailable('no route'), [ONE])
    ask(directory)
    assert len(directory.asked) == 3


def test_a_directory_that_stays_away_is_a_503_within_the_deadline(caplog):
    """Never 404, which guests take for 'no metadata here'."""
    response, clock = ask(FakeLookup(LookupUnavailable('no route to Quantum')), status=503)
    assert response.headers['Retry-After'] == '1'
    assert sum(clock.slept) <= 9.0
    assert 'cannot find out who is at 10.1.1.2 behind router r1: no route to Quantum' in caplog.text
    assert 'Quantum' not in response.text


def test_what_asking_again_cannot_help_is_a_503_at_once():
    directory = FakeLookup(InstanceLookupError('the role shows no ports'))
    ask(directory, status=503)
    assert len(directory.asked) == 1


def test_one_silent_try_leaves_time_for_another():
    directory = FakeLookup([ONE])
    ask(directory)
    assert directory.asked[0][1].remaining_s() == pytest.approx(6.0)


def test_the_fault_is_logged_once_for_many_guests(caplog):
    clock = FakeClock()
    app = webtest.TestApp(
        InstanceFilter(tells, directory=FakeLookup(InstanceLookupError('no rights')), sleep=clock.sleep)
    )
    with caplog.at_level(logging.ERROR):
        for _ in range(5):
            deadline = Deadline.after(9, clock)
            app.get('/', extra_environ={environ_keys.SOURCE: SOURCE, environ_keys.DEADLINE: deadline}, status=503)
    assert len(caplog.records) == 1


def test_an_instance_that_is_known_already_is_left_alone():
    directory = FakeLookup([ONE])
    response, _ = ask(directory, **{environ_keys.INSTANCE: OTHER})
    assert 'i2' in response.text
    assert directory.asked == []


def test_a_directory_that_does_not_exist_is_refused(tmp_path):
    path = tmp_path / 'agent.ini'
    path.write_text('[DEFAULT]\ndirectory = nuetron\n')
    with pytest.raises(ConfigError) as raised:
        filter_factory({'config_file': str(path)})
    assert str(raised.value) == 'directory = nuetron: there is none; choose one of neutron, quantum, static'
