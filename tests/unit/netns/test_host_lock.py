# SPDX-License-Identifier: Apache-2.0
import os
import threading

import pytest

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.netns import host_lock


def test_lock_is_exclusive_between_threads(tmp_path):
    inside, most = [], []

    def act():
        for _ in range(20):
            with host_lock.exclusive(str(tmp_path)):
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


def test_lock_is_released_after_an_exception_and_is_per_state_path(tmp_path):
    with pytest.raises(RuntimeError), host_lock.exclusive(str(tmp_path / 'made')):
        raise RuntimeError
    with host_lock.exclusive(str(tmp_path / 'made')), host_lock.exclusive(str(tmp_path / 'other')):
        pass


@pytest.mark.parametrize('kind', ['open to others', 'a link', 'a directory'])
def test_lock_file_that_others_can_open_is_refused(tmp_path, kind):
    path = tmp_path / host_lock.NAME
    if kind == 'open to others':
        path.write_text('')
        path.chmod(0o666)
    elif kind == 'a link':
        path.symlink_to(tmp_path / 'elsewhere')
    else:
        path.mkdir()
    with pytest.raises(NetnsError, match=str(path)), host_lock.exclusive(str(tmp_path)):
        pass
