# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys
import threading
import time

import pytest
from gevent import monkey

from metadata_wsgi.errors import ConfigError
from metadata_wsgi.inventory import ReloadingInventory, parse, reloading
from metadata_wsgi.inventory.reloading import MAX_WAIT_S
from tests.fakes import FakeClock


def cloud(*networks):
    return 'networks:\n' + ''.join(f'- id: {network}\n' for network in networks) + 'ports: []\ninstances: []\n'


@pytest.fixture(autouse=True)
def long_wait(request, monkeypatch):
    """On a busy machine the thread that reads the file may need seconds."""
    if 'bounded_time' not in request.node.name:
        monkeypatch.setattr(reloading, 'MAX_WAIT_S', 60.0)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / 'inventory.yaml'
    path.write_text(cloud('one'))
    return path


def replace(path, text):
    """Rename a finished file over the old one, as the sample inventory recommends."""
    new = path.with_suffix('.new')
    new.write_text(text)
    new.rename(path)


def errors(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == 'ERROR']


def test_an_invalid_file_stops_the_start(path):
    path.write_text('networks: [\n')
    with pytest.raises(ConfigError, match='not YAML'):
        ReloadingInventory(str(path))


def test_a_changed_file_is_read_after_the_interval_and_not_before(path):
    clock = FakeClock()
    inventory = ReloadingInventory(str(path), interval_s=5, clock=clock)
    replace(path, cloud('one', 'two'))
    clock.sleep(4.9)
    assert list(inventory.current().networks) == ['one']
    clock.sleep(0.1)
    assert list(inventory.current().networks) == ['one', 'two']


def test_an_unchanged_file_is_not_read_again(path):
    inventory = ReloadingInventory(str(path), interval_s=0)
    assert inventory.current() is inventory.current()


@pytest.mark.parametrize(
    'change',
    [
        lambda path: replace(path, cloud('two')),
        lambda path: path.write_text(cloud('two', 'three')),
        lambda path: (path.write_text(cloud('two')), os.utime(path, ns=(0, 12345))),
    ],
    ids=['inode', 'size', 'time'],
)
def test_a_change_is_detected_by_inode_size_or_time(path, change):
    inventory = ReloadingInventory(str(path), interval_s=0)
    change(path)
    assert 'two' in inventory.current().networks


def test_an_invalid_file_is_logged_once_with_its_line_and_the_old_inventory_stays(path, caplog):
    inventory = ReloadingInventory(str(path), interval_s=0)
    replace(path, 'networks:\n- id: one\n- id: one\nports: []\ninstances: []\n')
    assert [list(inventory.current().networks) for _ in range(3)] == [['one']] * 3
    message = f'{path}:3: a network with the id one is already there'
    assert errors(caplog) == [f'The new inventory file is invalid, the old inventory stays in use: {message}']


def test_another_invalid_file_is_logged_again_and_a_valid_one_is_used(path, caplog):
    inventory = ReloadingInventory(str(path), interval_s=0)
    for text in ('[', '{', cloud('two')):
        replace(path, text)
        inventory.current()
    assert len(errors(caplog)) == 2
    assert list(inventory.current().networks) == ['two']


def test_a_removed_file_is_logged_once_and_read_when_it_is_back(path, caplog):
    inventory = ReloadingInventory(str(path), interval_s=0)
    path.unlink()
    assert [list(inventory.current().networks) for _ in range(2)] == [['one']] * 2
    assert len(errors(caplog)) == 1
    assert errors(caplog)[0].endswith(f'inventory = {path}: cannot be read: No such file or directory')
    path.write_text(cloud('back'))
    assert list(inventory.current().networks) == ['back']


def test_a_half_written_file_is_not_a_cloud_without_instances(path):
    inventory = ReloadingInventory(str(path), interval_s=0)
    path.write_text('')
    assert list(inventory.current().networks) == ['one']


def test_threads_get_the_old_inventory_or_the_new_one(path):
    inventory = ReloadingInventory(str(path), interval_s=0)
    start, stop, seen = threading.Barrier(5), threading.Event(), set()

    def read():
        start.wait()
        while not stop.is_set():
            seen.add(tuple(inventory.current().networks))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    start.wait()
    for _ in range(20):
        replace(path, cloud('one', 'two'))
        replace(path, cloud('three', 'four'))
    stop.set()
    for thread in threads:
        thread.join()
    assert tuple(inventory.current().networks) == ('three', 'four')
    assert seen <= {('one',), ('one', 'two'), ('three', 'four')}


class SlowFile:
    """A file whose first reading takes no time, and the next ones until ``finish`` is set. Each has another network."""

    def __init__(self):
        self.finish, self.readings = threading.Event(), 0

    def read(self, path):
        self.readings += 1
        if self.readings > 1:
            assert self.finish.wait(20)
        return (self.readings, 0, 0), parse(cloud(f'n{self.readings}').encode(), path)


def test_a_request_waits_for_a_slow_reload_for_a_bounded_time_only(path):
    clock, file = FakeClock(), SlowFile()

    def sleep(seconds):
        """The clock stands still while the test waits for the thread: the file is not checked again."""
        (time if file.finish.is_set() else clock).sleep(seconds)

    inventory = ReloadingInventory(str(path), interval_s=10, clock=clock, sleep=sleep, read=file.read)
    clock.sleep(10)
    assert [list(inventory.current().networks) for _ in range(3)] == [['n1']] * 3
    assert inventory.is_reloading()
    assert clock.now_s <= 1000 + 10 + 3 * MAX_WAIT_S + 0.001
    file.finish.set()
    while inventory.is_reloading():
        inventory.current()
    assert list(inventory.current().networks) == ['n2']
    assert file.readings == 2


def test_a_changed_file_is_read_without_a_thread_if_none_can_be_started(path, monkeypatch):
    """A limit of threads (TasksMax) must not leave the worker with the old inventory."""

    def start_new_thread(function, arguments):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(monkey, 'get_original', lambda module, name: start_new_thread)
    inventory = ReloadingInventory(str(path), interval_s=0)
    replace(path, cloud('one', 'two'))
    assert list(inventory.current().networks) == ['one', 'two']
    assert not inventory.is_reloading()


def test_a_reload_does_not_stop_the_greenlets_of_a_worker(path):
    """The reading lasts until another greenlet has run: parsing is one long computation."""
    code = """if True:
        from gevent import monkey; monkey.patch_all()
        import sys, time, gevent
        from metadata_wsgi.inventory import ReloadingInventory, parse
        served, readings = [], []
        def read(path):
            readings.append(path)
            give_up_at = time.monotonic() + 20
            while len(readings) > 1 and not served:
                assert time.monotonic() < give_up_at, 'the other greenlet did not run'
            number = min(len(readings), 2)
            text = b'networks: [{id: n%d}]\\nports: []\\ninstances: []\\n' % number
            return (number, 0, 0), parse(text, path)
        inventory = ReloadingInventory(sys.argv[1], interval_s=0.1, read=read)
        time.sleep(0.2)
        def serve_another():
            served.append(1)
        gevent.spawn_later(0.05, serve_another)
        while 'n1' in inventory.current().networks:
            assert not readings[5:]
            gevent.sleep(0.01)
        print(*inventory.current().networks)
    """
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code, path], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ('n2\n', '')
