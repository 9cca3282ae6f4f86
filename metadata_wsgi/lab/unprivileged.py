# SPDX-License-Identifier: Apache-2.0
"""Run the lab without root, in a user namespace, where the kernel allows it.

Inside it the user is root over network, mount and process namespaces of its own: enough for a lab, and
nothing on the machine can be reached from there. All of the lab ends with the namespace's first
process, so a lab that is kept has a keeper, whose pid is written down in the user's runtime directory.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence

from metadata_wsgi.errors import NetnsError

INSIDE = 'METADATA_WSGI_LAB_INSIDE'
_UNSHARE = (
    'unshare',
    '--user',
    '--map-root-user',
    '--net',
    '--mount',
    '--pid',
    '--fork',
    '--kill-child',
    '--mount-proc',
)


def needed() -> bool:
    """Whether this process has to go into a user namespace first."""
    return os.geteuid() != 0


def run(argv: Sequence[str], *, keep: bool) -> int:
    """Run ``argv`` (the lab's own command) inside a new user namespace; returns its exit code.

    Raises NetnsError, saying what is needed, where the kernel or the administrator forbids it.
    """
    if shutil.which('unshare') is None:
        raise NetnsError('the lab needs root, or the program unshare (package util-linux) to do without')
    tried = subprocess.run([*_UNSHARE, 'true'], capture_output=True, text=True, check=False)
    if tried.returncode:
        raise NetnsError(
            f'the lab needs root here: a user namespace is not allowed ({tried.stderr.strip()}); '
            'run it with sudo, or let the administrator allow user namespaces '
            '(sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0)'
        )
    keeping = f' && {{ echo kept > {_kept_file()}.ready; exec sleep infinity; }}' if keep else ''
    script = 'mount -t tmpfs tmpfs /run && "$@"' + keeping
    command = [*_UNSHARE, 'sh', '-c', script, 'sh', *argv]
    environment = {**os.environ, INSIDE: '1'}
    if not keep:
        return subprocess.run(command, env=environment, check=False).returncode
    return _keep(command, environment)


def _keep(command: Sequence[str], environment: dict[str, str]) -> int:
    ready = f'{_kept_file()}.ready'
    if os.path.exists(ready):
        os.unlink(ready)
    # What outlives us may not hold our standard output: whoever reads it would wait for its end.
    reading, writing = os.pipe()
    keeper = subprocess.Popen(
        command, env=environment, start_new_session=True, stdin=subprocess.DEVNULL, stdout=writing, stderr=writing
    )
    os.close(writing)
    os.set_blocking(reading, False)
    with open(_kept_file(), 'w') as file:
        file.write(f'{keeper.pid}\n')
    code = None
    while code is None and not os.path.exists(ready):
        code = keeper.poll()
        _pass_on(reading)
        time.sleep(0.05)
    _pass_on(reading)
    os.close(reading)
    os.unlink(_kept_file() if code is not None else ready)
    return code or 0


def _pass_on(reading: int) -> None:
    try:
        while said := os.read(reading, 65536):
            os.write(1, said)
    except BlockingIOError:
        pass


def down() -> bool:
    """End the kept lab; whether there was one."""
    pid = kept_pid()
    if pid is None:
        return False
    os.kill(pid, signal.SIGKILL)
    os.unlink(_kept_file())
    return True


def kept_pid() -> int | None:
    """Pid of the keeper (the ``unshare`` that started the lab), None when there is none."""
    try:
        with open(_kept_file()) as file:
            pid = int(file.read())
        with open(f'/proc/{pid}/cmdline') as cmdline:
            return pid if cmdline.read().startswith('unshare\0') else None
    except (OSError, ValueError):
        return None


def enter(pid: int) -> str:
    """The beginning of a command line that goes into the lab kept by ``pid``."""
    with open(f'/proc/{pid}/task/{pid}/children') as children:
        inside = children.read().split()[0]
    return f'nsenter --target {inside} --user --net --mount --pid --preserve-credentials '


def _kept_file() -> str:
    directory = os.environ.get('XDG_RUNTIME_DIR') or f'/tmp/metadata_wsgi-{os.getuid()}'  # noqa: S108 (made private below)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    if os.stat(directory).st_uid != os.getuid():
        raise NetnsError(f'{directory} belongs to somebody else; set XDG_RUNTIME_DIR to a directory of yours')
    return os.path.join(directory, 'metadata_wsgi-lab.pid')
