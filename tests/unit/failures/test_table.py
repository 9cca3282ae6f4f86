# SPDX-License-Identifier: Apache-2.0
"""The table of recent failures: bounds, counts, and what a client may write into it."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadata_wsgi import limits
from metadata_wsgi.failures import table
from metadata_wsgi.failures.table import FailureTable


def make_table():
    return FailureTable(clock=itertools.count(1000.0).__next__)


def add(failures, address='10.1.1.2', namespace_id='router-a', reason='no instance has this address', **kwargs):
    failures.add(
        **{'status': 404, 'kind': 'router', 'path': '/openstack', 'reason': reason, **kwargs},
        address=address, namespace_id=namespace_id,
    )  # fmt: skip


def test_the_same_failure_is_one_row_with_a_count_and_both_times():
    failures = make_table()
    add(failures)
    add(failures, path='/latest/user-data')
    (row,) = failures.rows()
    assert (row.count, row.first_at_s, row.last_at_s, row.path) == (2, 1000.0, 1001.0, '/latest/user-data')


def test_the_last_failure_is_first():
    failures = make_table()
    for address in ('10.1.1.1', '10.1.1.2', '10.1.1.1'):
        add(failures, address)
    assert [row.address for row in failures.rows()] == ['10.1.1.1', '10.1.1.2']


def test_a_client_that_floods_forgets_only_its_own_failures():
    failures = make_table()
    add(failures, '10.1.1.9')
    for number in range(1000):
        add(failures, '10.1.1.2', reason=f'reason {number}')
    assert sum(row.address == '10.1.1.2' for row in failures.rows()) == limits.FAILURES_PER_ADDRESS
    assert sum(row.address == '10.1.1.9' for row in failures.rows()) == 1


def test_clients_of_one_router_that_flood_forget_only_failures_of_that_router():
    failures = make_table()
    add(failures, namespace_id='router-b')
    for number in range(1000):
        add(failures, f'10.1.{number // 250}.{number % 250}')
    by_router = [row.namespace_id for row in failures.rows()]
    assert (by_router.count('router-a'), by_router.count('router-b')) == (limits.FAILURES_PER_NAMESPACE, 1)


def test_the_number_of_routers_is_bounded_and_the_quietest_is_forgotten():
    failures = make_table()
    for number in range(limits.FAILURE_NAMESPACES + 5):
        add(failures, namespace_id=f'router-{number}')
        add(failures, namespace_id='router-0')
    found = {row.namespace_id for row in failures.rows()}
    assert len(found) == limits.FAILURE_NAMESPACES
    assert 'router-0' in found
    assert 'router-1' not in found


@given(st.text(), st.text(alphabet=st.characters(max_codepoint=255)), st.text(), st.text())
def test_no_text_of_a_client_is_longer_than_its_limit_or_reaches_a_terminal(address, path, namespace_id, reason):
    failures = FailureTable()
    add(failures, address, namespace_id, reason, path=path)
    (row,) = failures.rows()
    for name, limit in table.MAX_TEXT.items():
        text = getattr(row, name)
        assert len(text) <= limit
        assert all(' ' <= letter <= '~' for letter in text)
    assert table.from_objects(table.to_objects([row])) == [row]


def test_an_escape_sequence_in_a_path_is_percent_encoded():
    failures = make_table()
    add(failures, path='/a\x1b[2J\n\xe9')
    assert failures.rows()[0].path == '/a%1B%5B2J%0A%E9'


def test_tables_of_several_workers_are_merged_by_client_status_and_reason():
    one, other = make_table(), make_table()
    add(one)
    add(one)
    add(other, path='/later')
    add(other)
    add(other, status=503)
    merged = table.merge([one.rows(), other.rows()])
    assert [(row.status, row.count, row.first_at_s, row.last_at_s) for row in merged] == [
        (503, 1, 1002.0, 1002.0), (404, 4, 1000.0, 1001.0)
    ]  # fmt: skip


def row_of(**changes):
    failures = make_table()
    add(failures)
    return {**table.to_objects(failures.rows())[0], **changes}


@pytest.mark.parametrize(
    'objects',
    [
        None, {}, 'text', [1], [None], [[]], [{}], [row_of(more=1)], [row_of(path='\x1b[2J')], [row_of(path='x' * 121)],
        [row_of(path=7)], [row_of(count='1')], [row_of(count=1.5)], [row_of(status=True)], [row_of(status=-1)],
        [row_of(last_at_s=float('inf'))], [row_of(first_at_s=999_999_999_999)],
        [row_of(last_at_s=float('nan'))], [row_of(reason='caf\xe9')],
    ],
    ids=repr,
)  # fmt: skip
def test_a_row_that_no_worker_of_ours_writes_is_left_out(objects):
    assert table.from_objects(objects) == []


def test_more_rows_than_a_table_can_have_are_cut():
    bound = limits.FAILURE_NAMESPACES * limits.FAILURES_PER_NAMESPACE
    assert len(table.from_objects([row_of()] * (bound + 10))) == bound
