# SPDX-License-Identifier: Apache-2.0
"""The counts of workers in files. Each worker is a process of its own: the library has one directory in a process."""

import fcntl
import os
import subprocess
import sys

import pytest

from metadata_wsgi import instruments
from metadata_wsgi.metrics import files, page

WORKER = """if True:
    import sys
    from metadata_wsgi import instruments
    from metadata_wsgi.metrics import sink
    sink.connect(sys.argv[1])
    for statement in sys.argv[2:]:
        exec(statement, vars(instruments))
    print('done', flush=True)
    sys.stdin.read()
"""
COUNT = "RETRIES.add('nova')"


@pytest.fixture
def worker(tmp_path):
    """Starts a process that runs statements with the instruments; it ends at ``communicate``."""
    started = []
    (tmp_path / 'metrics').mkdir()

    def run(*statements, ends=False):
        argv = [sys.executable, '-W', 'ignore', '-c', WORKER, tmp_path / 'metrics', *statements]
        process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == 'done\n', process.stderr.read()
        if ends:
            process.communicate(timeout=60)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.communicate(timeout=60)


def samples(tmp_path):
    """Series -> value, of the page."""
    text = page.render(str(tmp_path / 'metrics')).decode()
    return {line.rpartition(' ')[0]: float(line.rpartition(' ')[2]) for line in text.splitlines() if line[0] != '#'}


def names(tmp_path):
    return {path.name for path in (tmp_path / 'metrics').iterdir()}


def test_the_counts_of_running_workers_are_added_up(worker, tmp_path):
    worker(COUNT, COUNT, "LOOKUP_SECONDS.observe(0.02, 'one')")
    worker(COUNT, "LOOKUP_SECONDS.observe(7, 'one')")
    found = samples(tmp_path)
    assert found['metadata_wsgi_retries_total{service="nova"}'] == 3
    assert found['metadata_wsgi_lookup_seconds_count{result="one"}'] == 2
    assert found['metadata_wsgi_lookup_seconds_bucket{le="0.025",result="one"}'] == 1
    assert found['metadata_wsgi_lookup_seconds_sum{result="one"}'] == pytest.approx(7.02)


def test_series_with_known_labels_exist_before_the_first_event(worker, tmp_path):
    """Or the first event would be no increase for Prometheus."""
    worker(COUNT)
    found = samples(tmp_path)
    assert found['metadata_wsgi_retries_total{service="lookup"}'] == 0
    assert found['metadata_wsgi_lookup_seconds_count{result="unavailable"}'] == 0
    assert not [series for series in found if 'keeper_up' in series]


def test_gauges_of_running_workers_are_combined(worker, tmp_path):
    for up, attached in ((1, 3), (0, 4)):
        worker(
            "WORKERS.set(1, 'agent')", f"KEEPER_UP.set({up}, 'shared')", f"ATTACHED.set({attached}, 'shared', 'router')"
        )
    found = samples(tmp_path)
    assert found['metadata_wsgi_workers{program="agent"}'] == 2
    assert found['metadata_wsgi_keeper_up{mode="shared"}'] == 0
    assert found['metadata_wsgi_attached{kind="router",mode="shared"}'] == 4
    assert [value for series, value in found.items() if series.startswith('metadata_wsgi_build_info{')] == [1]


def test_counts_of_ended_workers_stay_and_their_gauges_and_files_do_not(worker, tmp_path):
    for _ in range(3):
        worker(COUNT, "LOOKUP_SECONDS.observe(1, 'one')", "WORKERS.set(1, 'agent')", ends=True)
    last = worker("WORKERS.set(1, 'agent')")
    found = samples(tmp_path)
    assert found['metadata_wsgi_retries_total{service="nova"}'] == 3
    assert found['metadata_wsgi_lookup_seconds_count{result="one"}'] == 3
    assert found['metadata_wsgi_workers{program="agent"}'] == 1
    own = {
        f'{kind}_{last.pid}.db' for kind in ('counter', 'histogram', 'gauge_livesum', 'gauge_livemin', 'gauge_livemax')
    }
    assert names(tmp_path) == {*own, files.LOCK, f'process_{last.pid}.lock', 'counter_ended.db', 'histogram_ended.db'}


def test_a_process_that_counts_nothing_leaves_no_file(worker, tmp_path):
    """check-config, and the check before a reload."""
    worker(ends=True)
    assert names(tmp_path) == set()


def test_files_of_version_1_0_are_added_up(worker, tmp_path):
    old = worker(COUNT)
    old.communicate(timeout=60)
    (tmp_path / 'metrics' / f'process_{old.pid}.lock').unlink()
    worker(COUNT)
    assert samples(tmp_path)['metadata_wsgi_retries_total{service="nova"}'] == 2


def test_odd_files_do_not_stop_a_worker(worker, tmp_path):
    directory = tmp_path / 'metrics'
    (directory / 'histogram_1.db').write_bytes(b'odd')
    (directory / 'counter_2.db').symlink_to('/dev/zero')
    os.mkfifo(directory / 'counter_3.db')
    (directory / 'process_4.lock').mkdir()
    process = worker(COUNT)
    assert f'counter_{process.pid}.db' in names(tmp_path)
    assert samples(tmp_path)['metadata_wsgi_retries_total{service="nova"}'] == 1


def hold_lock(path):
    """Lock ``path`` as ``flock(1)`` does. The lock is held until the returned descriptor is closed."""
    fd = os.open(path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def test_lock_of_another_user_on_the_directory_blocks_no_scrape_and_no_worker(worker, tmp_path):
    """Every user may open the directory and lock it. The agent serves the page in its event loop."""
    fd = hold_lock(tmp_path / 'metrics')
    worker(COUNT)
    assert samples(tmp_path)['metadata_wsgi_retries_total{service="nova"}'] == 1
    os.close(fd)


def test_other_users_cannot_open_the_lock_files(worker, tmp_path):
    worker(COUNT)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / 'metrics').glob('*.lock')}
    assert set(modes.values()) == {0o600}
    assert len(modes) == 2


def test_scrape_while_the_lock_is_held_for_long_is_an_error(worker, tmp_path, monkeypatch):
    monkeypatch.setattr(files, 'LOCK_WAIT_S', 0.02)
    worker(COUNT)
    fd = hold_lock(tmp_path / 'metrics' / files.LOCK)
    with pytest.raises(TimeoutError, match=r'directory\.lock'):
        samples(tmp_path)
    os.close(fd)
    assert samples(tmp_path)['metadata_wsgi_retries_total{service="nova"}'] == 1


def test_scrape_before_the_first_count_makes_no_file(tmp_path):
    (tmp_path / 'metrics').mkdir()
    assert samples(tmp_path) == {}
    assert names(tmp_path) == set()


def test_a_directory_that_cannot_be_written_is_one_log_line_and_nothing_is_counted(worker, tmp_path):
    (tmp_path / 'metrics').rmdir()
    (tmp_path / 'metrics').touch()
    process = worker('import logging; logging.basicConfig()', COUNT, COUNT)
    _, log = process.communicate(timeout=60)
    assert log.count('Nothing is counted for metrics') == 1


@pytest.mark.skipif(os.geteuid() != 0, reason='only root')
def test_root_opens_no_file_in_the_directory_of_another_user(worker, tmp_path):
    """That user could have put links there, and the library follows them."""
    os.chown(tmp_path / 'metrics', 65534, 65534)
    process = worker('import logging; logging.basicConfig()', COUNT, COUNT)
    _, log = process.communicate(timeout=60)
    assert log.count('root opens no file there') == 1
    assert names(tmp_path) == set()


def test_without_a_sink_an_instrument_does_nothing():
    for instrument in instruments.ALL:
        assert vars(instrument).get('add', instrument.kind) in (instrument.kind, instruments._ignore)
    instruments.RETRIES.add('nova')
    instruments.LOOKUP_SECONDS.observe(1.0, 'one')
    instruments.WORKERS.set(1, 'agent')


def test_names_of_metrics_follow_the_conventions_of_prometheus():
    """https://prometheus.io/docs/practices/naming/"""
    for instrument in instruments.ALL:
        assert instrument.name.startswith('metadata_wsgi_')
        assert instrument.name.endswith('_total') == (instrument.kind == 'counter')
        assert instrument.name.endswith('_seconds') == (instrument.kind == 'histogram')
        assert instrument.help.endswith('.')


def test_there_are_few_series_none_of_them_per_instance():
    for instrument in instruments.ALL:
        assert len(instrument.labels) <= 2
        assert not {'instance', 'address', 'router', 'network', 'project', 'path'} & set(instrument.labels)
