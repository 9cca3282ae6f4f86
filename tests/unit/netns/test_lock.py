# SPDX-License-Identifier: Apache-2.0
import os
import threading

import pytest

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.netns import lock


def test_one_at_a_time_and_each_has_its_turn(tmp_path):
    inside, most = [], []

    def act():
        for _ in range(20):
            with lock.alone(str(tmp_path)):
                inside.append(1)
                most.append(len(inside))
                os.sched_yield()
                inside.pop()

    threads = [threading.Thread(target=act) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 80


def test_a_turn_ends_also_with_a_fault_and_different_places_do_not_wait_for_each_other(tmp_path):
    with pytest.raises(RuntimeError), lock.alone(str(tmp_path / 'made')):
        raise RuntimeError
    with lock.alone(str(tmp_path / 'made')), lock.alone(str(tmp_path / 'other')):
        pass


@pytest.mark.parametrize('kind', ['open to others', 'a link', 'a directory'])
def test_a_file_that_others_could_hold_is_refused(tmp_path, kind):
    path = tmp_path / lock.NAME
    if kind == 'open to others':
        path.write_text('')
        path.chmod(0o666)
    elif kind == 'a link':
        path.symlink_to(tmp_path / 'elsewhere')
    else:
        path.mkdir()
    with pytest.raises(NetnsError, match=str(path)), lock.alone(str(tmp_path)):
        pass
