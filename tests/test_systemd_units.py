# SPDX-License-Identifier: Apache-2.0
"""The units of etc/systemd: what systemd-analyze finds in them, and what they run as root before the service.

``tests/netns/units`` runs the units.
"""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
UNITS = sorted((ROOT / 'etc' / 'systemd').iterdir())


def systemd_analyze(*argv):
    """The output of systemd-analyze. Skips the test if systemd is not installed."""
    if not shutil.which('systemd-analyze'):
        pytest.skip('systemd is not installed')
    return subprocess.run(
        ['systemd-analyze', *(str(word) for word in argv)], capture_output=True, text=True, check=False,
        env={**os.environ, 'SYSTEMD_COLORS': '0'},
    )  # fmt: skip


def test_systemd_analyze_verify_finds_no_fault_in_the_units(tmp_path):
    for unit in UNITS:
        # The programs are where this environment has them.
        text = unit.read_text().replace('/opt/metadata-wsgi/bin/', f'{sys.prefix}/bin/')
        (tmp_path / unit.name).write_text(text)
    done = systemd_analyze('verify', '--man=no', '--generators=no', *sorted(tmp_path.iterdir()))
    faults = [line for line in done.stderr.splitlines() if any(unit.name in line for unit in UNITS)]
    assert (faults, done.returncode) == ([], 0), done.stderr


@pytest.mark.parametrize('unit', UNITS, ids=lambda unit: unit.name)
def test_systemd_analyze_security_rates_a_unit_as_documented(unit):
    text = (ROOT / 'doc' / 'threat_model.md').read_text()
    if not systemd_analyze('--version').stdout.startswith('systemd 252 '):
        pytest.skip('the documentation quotes version 252; other versions rate differently')
    report = systemd_analyze('security', '--no-pager', '--offline=true', unit).stdout
    exposure = re.search(r'exposure level for \S+ ([\d.]+)', report)
    assert exposure, report
    assert f'| `{unit.name}` | {exposure[1]} |' in text


@pytest.mark.parametrize('unit', UNITS, ids=lambda unit: unit.name)
def test_a_unit_notifies_systemd_and_has_a_watchdog(unit):
    lines = unit.read_text().splitlines()
    assert 'Type=notify' in lines
    assert [line for line in lines if line.startswith('WatchdogSec=')]


def test_watch_starts_after_the_keeper_and_the_shared_proxy():
    """Otherwise it would start a shared proxy of its own, and the unit of the shared proxy could not start."""
    text = (ROOT / 'etc' / 'systemd' / 'metadata-wsgi-watch.service').read_text()
    after = {name for line in text.splitlines() if line.startswith('After=') for name in line[6:].split()}
    assert {'metadata-wsgi-keeper.service', 'quantum-ns-metadata-proxy.service'} <= after


@pytest.mark.parametrize('found', ['nothing', 'the state directory', 'external', 'a symlink'])
def test_units_make_the_state_directory_and_that_of_pid_files(tmp_path, found):
    """Root makes the directories before a worker can. Existing directories are not changed."""
    commands = set()
    # watch has no state of its own; it needs what the keeper's unit makes.
    for unit in sorted((ROOT / 'etc' / 'systemd').glob('*.service')):
        if unit.name == 'metadata-wsgi-watch.service':
            continue
        (command,) = re.findall(r"^ExecStartPre=\+/bin/sh -c '(.*?)'$", unit.read_text(), re.MULTILINE | re.DOTALL)
        commands.add(command)
    (command,) = commands
    state, elsewhere = tmp_path / 'quantum', tmp_path / 'elsewhere'
    elsewhere.mkdir()
    if found != 'nothing':
        state.mkdir()
        state.chmod(0o1775)
    if found == 'external':
        (state / 'external').mkdir(mode=0o700)
    elif found == 'a symlink':
        (state / 'external').symlink_to(elsewhere)
    script = command.replace('\\\n', '').replace('/var/lib/quantum', str(state)).replace('-g metadata-wsgi ', '')
    for _ in range(2):
        subprocess.run(['/bin/sh', '-c', script], check=True)
    assert stat.S_IMODE(state.stat().st_mode) == 0o1775
    if found in ('nothing', 'the state directory'):
        for name in ('external', 'external/pids'):
            assert stat.S_IMODE((state / name).stat().st_mode) == 0o755
    else:
        assert list(elsewhere.iterdir()) == list((state / 'external').iterdir()) == []
