# SPDX-License-Identifier: Apache-2.0
"""The memory in which a worker publishes its failures, read by its master and by another process of root."""

import contextlib
import os
import signal
import struct
import threading
import zlib

import pytest

from metadata_wsgi import limits
from metadata_wsgi.failures import shared_memory
from metadata_wsgi.failures.shared_memory import FailureMemory
from metadata_wsgi.failures.table import FailureTable
from metadata_wsgi.failures.worker_memories import WorkerMemories


@pytest.fixture
def memory():
    made = FailureMemory()
    yield made
    made.close()


def rows_of(*reasons, **kwargs):
    failures = FailureTable()
    for number, reason in enumerate(reasons):
        failures.add(status=503, reason=reason, address=f'10.1.1.{number}', **kwargs)
    return failures.rows()


def overwrite(memory, data):
    os.pwrite(memory._fd, data, 0)


def test_what_is_written_is_read(memory):
    assert memory.read() == []
    for rows in (rows_of('a', 'b'), rows_of('c'), []):
        memory.write(rows)
        assert memory.read() == rows


@contextlib.contextmanager
def process_with_memories(*, uid, memories, owner=None):
    """Another process, of the user ``uid``, which publishes the rows ``memories``, each in a memory of its own.

    ``owner``: the user that makes the memories, if it is not ``uid``.
    """
    ready, write_end = os.pipe()
    child = os.fork()
    if not child:
        try:
            owner = uid if owner is None else owner
            os.setresuid(owner, owner, os.geteuid())
            kept = [FailureMemory() for _ in memories]
            for one, rows in zip(kept, memories, strict=True):
                one.write(rows)
            os.setresuid(uid, uid, uid)
            os.write(write_end, b'x')
            signal.pause()
        finally:
            os._exit(1)
    try:
        os.close(write_end)
        assert os.read(ready, 1)
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)


def test_memory_of_another_process_is_found_by_its_name():
    rows = rows_of('a')
    with process_with_memories(uid=os.geteuid(), memories=[rows]):
        assert rows in shared_memory.read_all()


def test_a_table_that_several_processes_have_open_is_read_once(memory):
    memory.write(rows_of('only once'))
    child = os.fork()
    if not child:
        signal.pause()
    try:
        assert shared_memory.read_all().count(memory.read()) == 1
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason='needs a process of another user: run it as root')


@needs_root
def test_root_reads_the_memory_of_a_master_of_another_user():
    """The shipped units have ``User=metadata-wsgi``."""
    rows = rows_of('failure of a unit')
    with process_with_memories(uid=65534, memories=[rows]):
        assert rows in shared_memory.read_all()


@needs_root
def test_number_of_memories_of_one_user_is_limited_and_other_users_are_still_read(monkeypatch, caplog):
    monkeypatch.setattr(limits, 'FAILURE_MEMORIES_PER_USER', 3)
    many = [rows_of(f'forged {number}') for number in range(5)]
    with (
        process_with_memories(uid=64321, memories=many),
        process_with_memories(uid=64322, memories=[rows_of('read')]),
    ):
        reasons = [row.reason for rows in shared_memory.read_all() for row in rows]
    assert sum(reason.startswith('forged') for reason in reasons) == 3
    assert 'read' in reasons
    # Other tests on this host may have tables of other users.
    of_user = [message for message in caplog.messages if 'user 64321' in message]
    assert of_user == ['Failures are left out: user 64321 has more than 3 tables']


@needs_root
@pytest.mark.parametrize('uid', [0, 64321], ids=['of the master', 'of its worker'])
def test_number_of_memories_of_masters_of_root_is_not_limited(monkeypatch, caplog, uid):
    """In mode ``process`` each router has a master of root. A memory that a worker has open is that of the master."""
    monkeypatch.setattr(limits, 'FAILURE_MEMORIES_PER_USER', 3)
    many = [rows_of(f'router {number}') for number in range(5)]
    with process_with_memories(uid=uid, owner=0, memories=many):
        found = shared_memory.read_all()
    assert all(rows in found for rows in many)
    assert not [message for message in caplog.messages if 'user 64321' in message or 'user 0 ' in message]


def test_a_worker_cannot_make_the_memory_larger_or_smaller(memory):
    for size in (limits.FAILURE_MEMORY_BYTES * 2, 10):
        with pytest.raises(PermissionError):
            os.ftruncate(memory._fd, size)


def test_the_full_table_fits():
    memory, failures = FailureMemory(), FailureTable()
    for router in range(limits.FAILURE_NAMESPACES):
        for number in range(limits.FAILURES_PER_NAMESPACE):
            failures.add(
                status=503, reason='\\' * 300, path='\xff' * 200, kind='network', namespace_id=f'{router}' + 'x' * 64,
                address=f'{number}' + 'x' * 64, instance_id='x' * 64,
            )  # fmt: skip
    rows = failures.rows()
    memory.write(rows)
    published = memory.read()
    memory.close()
    # Quotation marks and backslashes double in JSON: then the oldest rows are left out.
    assert published == rows[: len(published)]
    assert len(published) > len(rows) / 3


@pytest.mark.parametrize(
    'data',
    [
        b'\xff' * 100, struct.pack('<II', 2**31, 0), struct.pack('<II', 4, zlib.crc32(b'nope')) + b'nope',
        struct.pack('<II', 50_000, zlib.crc32(b'[' * 50_000)) + b'[' * 50_000,
        struct.pack('<II', 3, zlib.crc32(b'\xff\xfe\xfd')) + b'\xff\xfe\xfd',
    ],
    ids=['noise', 'length', 'no-json', 'nested', 'no-text'],
)  # fmt: skip
def test_memory_that_a_compromised_worker_has_overwritten_has_no_rows(memory, data, monkeypatch):
    monkeypatch.setattr(shared_memory, 'READ_PAUSE_S', 0)
    overwrite(memory, data)
    assert memory.read() == []


def test_a_reader_never_sees_half_of_a_table(memory):
    tables = [rows_of(*'ab'), rows_of(*'cdefgh')]
    is_done = threading.Event()

    def write():
        while not is_done.is_set():
            for rows in tables:
                memory.write(rows)

    memory.write(tables[0])
    writer = threading.Thread(target=write)
    writer.start()
    found = []
    try:
        for _ in range(200):
            found.append(memory.read())
            assert found[-1] in [*tables, []]
    finally:
        is_done.set()
        writer.join()
    assert any(found)


def open_memories():
    return sum('memfd:metadata_wsgi_failures' in os.readlink(f'/proc/self/fd/{fd}') for fd in map(int, fds()))


def fds():
    return [fd for fd in os.listdir('/proc/self/fd') if os.path.lexists(f'/proc/self/fd/{fd}')]


def test_the_tables_of_the_last_workers_that_ended_are_kept():
    memories, before = WorkerMemories(), open_memories()
    for number in range(limits.FORMER_WORKERS + 3):
        memories.add(number)
        memories.end(number)
    assert open_memories() - before == limits.FORMER_WORKERS
    assert memories.take(0) is None
    assert open_memories() == before


def test_a_worker_that_ended_long_ago_is_not_counted_as_ended_again():
    """The table of a worker that ended later would be closed."""
    memories, before = WorkerMemories(), open_memories()
    for number in range(limits.FORMER_WORKERS + 1):
        memories.add(number)
        memories.end(number)
    memories.end(0)
    assert open_memories() - before == limits.FORMER_WORKERS
    for number in range(limits.FORMER_WORKERS + 1):
        memories.discard(number)
    assert open_memories() == before


def test_a_worker_keeps_only_its_own_memory():
    memories, before = WorkerMemories(), open_memories()
    for number in range(3):
        memories.add(number)
    own = memories.take(1)
    assert open_memories() - before == 1
    own.write(rows_of('mine'))
    own.close()
