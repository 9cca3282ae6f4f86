# SPDX-License-Identifier: Apache-2.0
import dataclasses
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadata_wsgi.deadline import Deadline
from metadata_wsgi.pipeline import environ_keys
from tests.fakes import FakeClock


def test_the_remaining_time_of_a_deadline_shrinks_to_zero():
    clock = FakeClock()
    deadline = Deadline.after(9.0, clock)
    clock.sleep(2.5)
    assert deadline.remaining_s() == 6.5
    clock.sleep(100)
    assert deadline.remaining_s() == 0.0


@given(st.floats(0, 1e6), st.floats(0, 1), st.floats(0, 1e6))
def test_a_fraction_of_a_deadline_is_never_later(within_s, part, passed_s):
    clock = FakeClock()
    deadline = Deadline.after(within_s, clock)
    clock.sleep(passed_s)
    earlier = deadline.fraction(part)
    assert earlier.remaining_s() <= deadline.remaining_s()
    assert earlier.clock is clock


def test_a_fraction_of_a_deadline_is_that_part_of_the_remaining_time():
    assert Deadline.after(9.0, FakeClock()).fraction(2 / 3).remaining_s() == pytest.approx(6.0)


def test_the_values_of_environ_keys_cannot_be_changed():
    source = environ_keys.Source('10.1.1.2', router_id='r')
    with pytest.raises(dataclasses.FrozenInstanceError):
        source.address = '10.1.1.3'


def test_the_text_of_a_source_in_a_log():
    assert str(environ_keys.Source('10.1.1.2', router_id='r1')) == '10.1.1.2 behind router r1'
    assert str(environ_keys.Source('10.1.1.2', network_id='n1')) == '10.1.1.2 behind network n1'


def test_the_text_of_an_instance_in_a_log():
    assert str(environ_keys.Source('10.1.1.2', network_id='n')) == '10.1.1.2 behind network n'
    assert str(environ_keys.Instance('i', 'p', 'q', 1.0)) == 'i of project p, port q'


def test_the_text_of_a_signed_identity_has_no_signature():
    identity = environ_keys.SignedIdentity(environ_keys.Instance('i', 'p', 'q'), '10.1.1.2', ('5bdc', 'a0f1'))
    assert str(identity) == '2 signatures of i'
    assert '5bdc' not in repr(identity)


AFTER_IMPORT = """
from metadata_wsgi.filters import instance
from metadata_wsgi.filters.optional import lookup_cache
from metadata_wsgi.http import retry
from metadata_wsgi.lookup import request_lookup
from metadata_wsgi.namespace_proxy import app
from metadata_wsgi.nova_proxy import upstream
from gevent import monkey; monkey.patch_all()
import gevent, inspect, time
for function in (instance.InstanceFilter, lookup_cache.LookupCacheFilter, retry.retry_until,
                 request_lookup.RequestLookup, app.NamespaceProxyApp, upstream.UpstreamApp):
    sleep = inspect.signature(function).parameters['sleep'].default
    order = []
    def sleeps():
        sleep(0.05)
        order.append('after the sleep')
    sleeping = gevent.spawn(sleeps)
    gevent.sleep(0)
    order.append('meanwhile')
    sleeping.join()
    assert order == ['meanwhile', 'after the sleep'], function
"""


def test_the_default_sleep_is_that_of_gevent_also_if_modules_are_imported_before_it_patches():
    done = subprocess.run([sys.executable, '-c', AFTER_IMPORT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
