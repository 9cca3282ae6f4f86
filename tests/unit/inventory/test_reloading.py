# SPDX-License-Identifier: Apache-2.0
import os
import threading

import pytest

from metadata_wsgi.errors import ConfigError
from metadata_wsgi.inventory import ReloadingInventory
from tests.fakes import FakeClock


def cloud(*networks):
    return 'networks:\n' + ''.join(f'- id: {network}\n' for network in networks) + 'ports: []\ninstances: []\n'


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
    assert errors(caplog) == [f'The inventory is not replaced, the one read before stays in use: {message}']


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
