# SPDX-License-Identifier: Apache-2.0
"""Files in /run/netns that are no namespaces, and namespaces that are deleted meanwhile, beside well ones."""

import contextlib
import os
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import pytest

from metadata_wsgi.netns import attachment_status, namespaces, proxy_process
from metadata_wsgi.netns.iptables import Iptables
from metadata_wsgi.netns.runner import SubprocessRunner
from tests.conftest import MOUNTS_OF_HOST
from tests.e2e.conftest import eventually

from .router_topology import METADATA, get, ip

pytestmark = pytest.mark.netns

PROGRAM = str(Path(sys.prefix, 'bin', 'metadata-wsgi'))
STANDIN = str(Path(__file__).with_name('fake_namespace_proxy.py'))
WITH_STANDIN = ('--mode=process', f'--program={STANDIN}')


@pytest.fixture
def stale():
    """The id of a stale router; there is a stale file of another program too."""
    id_ = str(uuid.uuid4())
    paths = [Path(namespaces.path(name)) for name in (f'qrouter-{id_}', f'cni-{id_}')]
    for path in paths:
        path.touch()
        os.utime(path, (1, 1))
    yield id_
    for path in paths:
        path.unlink()


def test_namespaces_of_the_host_are_not_those_of_this_test_run():
    """Otherwise ``detach --all`` would detach the routers of a developer's host, and ``watch`` attach them."""
    assert os.readlink('/proc/self/ns/mnt') != MOUNTS_OF_HOST


def run(verb, state_path, *options):
    argv = [PROGRAM, verb, f'--state-path={state_path}', *options]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def attach(topology, tmp_path):
    options = (f'--router-id={topology.uuid}', f'--program={STANDIN}', '--no-wait', '--mode=process')
    yield lambda: run('attach', tmp_path, *options)
    proxy_process.stop(f'{tmp_path}/external/pids/{topology.uuid}.pid', topology.uuid)


def test_attached_and_detach_all_serve_the_others_and_name_the_stale_one(topology, attach, stale, tmp_path):
    assert attach().returncode == 0
    done = run('attached', tmp_path)
    assert (done.returncode, done.stderr) == (1, '')
    assert f'router  {topology.uuid}  {topology.router}  process' in done.stdout
    problems = [line for line in done.stdout.splitlines() if 'remove it' in line]
    assert len(problems) == 1
    assert f'qrouter-{stale} is a file and not a namespace; remove it: ip netns delete qrouter-{stale}' in problems[0]
    assert 'cni-' not in done.stdout
    assert get(topology.guest, METADATA) == f'proxy of {topology.uuid}'
    done = run('detach', tmp_path, '--all')
    assert f'router {topology.uuid} is detached' in done.stdout
    assert (done.returncode, done.stderr) == (0, '')


def test_stale_names_beyond_the_bulk_threshold_are_reported_too(topology, attach, stale, tmp_path):
    """Rules are then read without a program."""
    more = [f'more-{number}-{stale}' for number in range(4)]
    try:
        for name in more:
            ip('netns', 'add', name)
        assert attach().returncode == 0
        done = run('attached', tmp_path)
        assert (done.returncode, done.stdout.count('remove it')) == (1, 1)
        assert topology.uuid in done.stdout
    finally:
        for name in more:
            ip('netns', 'delete', name)


def test_watch_serves_the_others_and_logs_the_stale_one_once(topology, stale, tmp_path):
    log = tmp_path / 'watch.log'
    with log.open('wb') as output:
        watch = subprocess.Popen(
            [PROGRAM, 'watch', f'--state-path={tmp_path}', '--interval=0.1', '--', *WITH_STANDIN],
            stderr=output,
        )
    try:
        eventually(lambda: f'router {topology.uuid}: attached' in log.read_text(), log.read_text)
        eventually(lambda: f'router {stale}: ' in log.read_text(), log.read_text)
        # What comes later is attached too.
        later = f'qrouter-{uuid.uuid4()}'
        ip('netns', 'add', later)
        try:
            eventually(lambda: f'{later.replace("qrouter-", "router ")}: attached' in log.read_text(), log.read_text)
        finally:
            ip('netns', 'delete', later)
        assert log.read_text().count(f'qrouter-{stale} is a file and not a namespace') == 1
        assert 'cni-' not in log.read_text()
    finally:
        watch.terminate()
        watch.wait(20)
        for file in tmp_path.glob('external/pids/*.pid'):
            proxy_process.stop(str(file), file.stem)


def test_watch_attaches_a_new_namespace_without_waiting_for_the_interval(tmp_path):
    log, router = tmp_path / 'watch.log', str(uuid.uuid4())
    with log.open('wb') as output:
        watch = subprocess.Popen(
            [PROGRAM, 'watch', f'--state-path={tmp_path}', '--interval=3600', '--', *WITH_STANDIN],
            stderr=output,
        )
    try:
        eventually(lambda: started(watch), log.read_text)
        ip('netns', 'add', f'qrouter-{router}')
        try:
            eventually(lambda: f'router {router}: attached' in log.read_text(), log.read_text)
        finally:
            ip('netns', 'delete', f'qrouter-{router}')
        eventually(lambda: f'router {router}: detached' in log.read_text(), log.read_text)
    finally:
        watch.terminate()
        assert watch.wait(20) == 0


def started(process):
    """Whether it follows the directory: it has an inotify descriptor."""
    for fd in Path(f'/proc/{process.pid}/fd').iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if os.readlink(fd) == 'anon_inode:inotify':
                return True
    return False


def test_namespaces_that_are_deleted_meanwhile_do_not_disturb_a_listing(topology, attach, tmp_path):
    assert attach().returncode == 0
    running = threading.Event()
    running.set()

    def churn():
        while running.is_set():
            for name in ('churn-x', 'qrouter-churn-y'):
                ip('netns', 'add', name)
                ip('netns', 'delete', name)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(15):
            iptables = Iptables(SubprocessRunner())
            found = attachment_status.list_attachments(iptables, state_path=str(tmp_path))
            assert [one.problems for one in found if one.uuid == topology.uuid] == [()]
    finally:
        running.clear()
        thread.join()
