# SPDX-License-Identifier: Apache-2.0
"""What the units of etc/systemd run as root before the service."""

import re
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize('found', ['nothing', 'the state directory', 'external', 'a symlink'])
def test_units_make_the_state_directory_and_that_of_pid_files(tmp_path, found):
    """As root, before a worker can; what is there already is left alone."""
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
