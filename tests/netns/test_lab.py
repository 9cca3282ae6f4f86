# SPDX-License-Identifier: Apache-2.0
"""``metadata-wsgi lab`` in mount and network namespaces of its own, so that no other lab is disturbed."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pyroute2 import netns

from metadata_wsgi.lab import topology
from metadata_wsgi.netns import namespaces

pytestmark = pytest.mark.netns

PROGRAM = str(Path(sys.prefix, 'bin', 'metadata-wsgi'))
ROW = re.compile(r'^(red|blue|alone) +\w+ +(?:router|network) \S+ +(\S+) +(\S{36}) +(\S+)$', re.MULTILINE)
TRACES = (
    'find /run/netns /run/metadata_wsgi-lab -mindepth 1 2>/dev/null; '
    'ps -ww -eo args | grep -e quantum- -e gunicorn | grep -v -e grep -e defunct; true'
)


@pytest.fixture
def machine():
    """Runs shell commands on a machine of their own: no other /run, network or process is seen there."""
    if not shutil.which('unshare'):
        pytest.skip('unshare is not installed')
    fork = ('unshare', '--mount', '--net', '--pid', '--fork', '--kill-child', '--mount-proc')
    script = 'mount -t tmpfs none /run && mkdir /run/netns && ip link set lo up && echo ready && exec sleep infinity'
    first = subprocess.Popen([*fork, 'sh', '-c', script], stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == 'ready\n'
    inside = Path(f'/proc/{first.pid}/task/{first.pid}/children').read_text().split()[0]

    def run(command, within_s=180):
        enter = ('nsenter', '--target', inside, '--mount', '--net', '--pid', '--wd=/')
        return subprocess.run(
            [*enter, 'sh', '-c', command], capture_output=True, text=True, timeout=within_s, check=False
        )

    yield run
    os.kill(int(inside), signal.SIGKILL)
    first.wait(10)
    first.stdout.close()


def test_lab_creates_a_namespace_without_fork(monkeypatch):
    """The child of a process with threads may never respond. It had 2 s, and on a busy machine needed longer."""

    def fork():
        raise AssertionError('the process was forked')

    monkeypatch.setattr(os, 'fork', fork)
    name = f'lab-{os.getpid()}'
    topology.create_namespace(name)
    try:
        assert namespaces.exists(name)
        assert os.stat(topology.namespace_path(name)).st_ino != os.stat('/proc/self/ns/net').st_ino
        with pytest.raises(FileExistsError):
            topology.create_namespace(name)
    finally:
        netns.remove(name)


def test_lab_shows_three_instances_at_one_address_and_leaves_no_trace(machine):
    done = machine(f'{PROGRAM} lab')
    assert done.returncode == 0, done.stdout + done.stderr
    rows = ROW.findall(done.stdout)
    assert [row[0] for row in rows] == ['red', 'blue', 'alone']
    assert {row[1] for row in rows} == {'10.1.1.2'}
    assert len({row[2] for row in rows}) == 3
    assert [row[3] for row in rows] == ['vm-red', 'vm-blue', 'vm-alone']
    assert machine(TRACES).stdout == ''


def test_lab_keep_has_the_usual_processes_and_rules_and_down_removes_it(machine):
    done = machine(f'{PROGRAM} lab --keep')
    assert done.returncode == 0, done.stdout + done.stderr
    router = re.search(r'router (\S{36})', done.stdout)[1]
    assert f'--router_id={router}' in machine('ps -ww -eo args').stdout
    assert 'metadata_proxy' in machine('ip netns exec metadata-lab-host ss -xlp').stdout
    rules = machine(f'ip netns exec qrouter-{router} iptables-save').stdout
    assert re.search(r'-A quantum-l3-agent-INPUT -d 127.0.0.1/32 -p tcp -m tcp --dport 9697 .*-j ACCEPT', rules)
    assert re.search(r'-A quantum-l3-agent-PREROUTING -d 169.254.169.254/32 .*--dport 80 .*--to-ports 9697', rules)
    shell = re.search(r'A shell in a guest: +(.*) bash', done.stdout)[1]
    assert machine(f'{shell} curl -s http://169.254.169.254/latest/meta-data/hostname').stdout == 'vm-red'
    assert machine(f'{PROGRAM} lab down').returncode == 0
    assert machine(TRACES).stdout == ''


def test_lab_after_a_killed_lab(machine):
    """Some of its processes and namespaces exist still: how many depends on the moment of the signal."""
    machine(f'{PROGRAM} lab & until [ "$(ls /run/netns)" ]; do sleep 0.05; done; kill -KILL $!')
    assert machine('ls /run/netns').stdout
    done = machine(f'{PROGRAM} lab')
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(ROW.findall(done.stdout)) == 3
    assert machine(TRACES).stdout == ''


@pytest.fixture
def newcomer(machine, tmp_path):
    """Runs the lab's command as another user than root, with a runtime directory of its own."""
    user = 'unshare --user --map-user=1000 --map-group=1000'
    if machine(f'{user} unshare --user --map-root-user true').returncode:
        pytest.skip('user namespaces are not allowed here')
    return lambda words: machine(f'{user} env XDG_RUNTIME_DIR={tmp_path} {PROGRAM} lab {words}')


def test_lab_without_root_leaves_no_trace(machine, newcomer, tmp_path):
    done = newcomer('')
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith('Without root: in a user namespace\n')
    assert [row[3] for row in ROW.findall(done.stdout)] == ['vm-red', 'vm-blue', 'vm-alone']
    assert (machine(TRACES).stdout, list(tmp_path.iterdir())) == ('', [])


def test_lab_keep_without_root_is_entered_replaced_and_removed(machine, newcomer, tmp_path):
    first = newcomer('--keep')
    assert first.returncode == 0, first.stdout + first.stderr
    pid = (tmp_path / 'metadata_wsgi-lab.pid').read_text()
    done = newcomer('--keep')
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / 'metadata_wsgi-lab.pid').read_text() != pid
    shell = re.search(r'A shell in a guest: +(.*) bash', done.stdout)[1]
    assert machine(f'{shell} curl -s http://169.254.169.254/latest/meta-data/hostname').stdout == 'vm-red'
    assert [newcomer('down').stdout for _ in range(2)] == ['Removed the lab\n', 'No lab is up\n']
    assert (machine(TRACES).stdout, list(tmp_path.iterdir())) == ('', [])


def test_failed_lab_without_root_reports_the_error_and_leaves_no_trace(machine, newcomer, tmp_path):
    paste = tmp_path / 'broken.ini'
    paste.write_text('[pipeline:agent]\npipeline = no_such_filter\n')
    done = newcomer(f'--keep --paste-file {paste}')
    assert done.returncode == 1
    assert 'red: curl http://169.254.169.254/openstack/latest/meta_data.json: status 503' in done.stdout
    paste.unlink()
    assert (machine(TRACES).stdout, list(tmp_path.iterdir())) == ('', [])
