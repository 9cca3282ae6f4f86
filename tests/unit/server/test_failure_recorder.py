# SPDX-License-Identifier: Apache-2.0
"""Which failures are recorded, for which client."""

import pytest

from metadata_wsgi.failures.shared_memory import FailureMemory
from metadata_wsgi.pipeline.environ_keys import (
    FAILURE,
    INSTANCE,
    NAMESPACE,
    SOURCE,
    Failure,
    Instance,
    Namespace,
    Source,
)
from metadata_wsgi.server.failure_recorder import FailureRecorder

ROUTER, NETWORK = Namespace(router_id='router-a'), Namespace(network_id='network-c')
REFUSED = Failure(503, 'the lookup failed')


@pytest.fixture
def recorded():
    """A function: the row that an environ makes, None if it makes none."""

    def record(**environ):
        recorder = FailureRecorder(None)
        recorder.record({'PATH_INFO': '/openstack', **environ})
        rows = recorder.table.rows()
        return rows[0] if rows else None

    return record


def test_the_source_of_the_pipeline_names_the_client(recorded):
    source = Source('10.1.1.2', router_id='router-b')
    row = recorded(**{SOURCE: source, NAMESPACE: ROUTER, FAILURE: REFUSED, INSTANCE: Instance('i-1', 'p', 'port')})
    assert (row.kind, row.namespace_id, row.address, row.instance_id) == ('router', 'router-b', '10.1.1.2', 'i-1')
    assert (row.status, row.reason, row.path, row.count) == (503, 'the lookup failed', '/openstack', 1)


def test_without_a_source_the_namespace_of_the_connection_names_it(recorded):
    row = recorded(**{NAMESPACE: NETWORK, 'REMOTE_ADDR': '10.1.1.3', FAILURE: REFUSED})
    assert (row.kind, row.namespace_id, row.address) == ('network', 'network-c', '10.1.1.3')


def test_a_request_of_the_host_itself_is_not_recorded(recorded):
    assert recorded(**{FAILURE: Failure(400, 'Neither a router id nor a network id.')}) is None


def test_a_table_is_published_when_it_has_changed():
    memory = FailureMemory()
    recorder = FailureRecorder(memory)
    recorder.publish()
    assert memory.read() == []
    recorder.record({SOURCE: Source('10.1.1.2', 'router-a'), FAILURE: REFUSED})
    recorder.publish()
    assert memory.read() == recorder.table.rows()
    assert recorder.table.has_changed is False
    memory.close()
