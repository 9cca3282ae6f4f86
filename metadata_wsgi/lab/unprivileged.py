# SPDX-License-Identifier: Apache-2.0
"""Runs the lab without root, in a user namespace, if the kernel allows it.

In a user namespace the user is root, with separate network, mount and pid namespaces. This is enough for a lab, and the
lab cannot change the machine. The lab ends when the first process of the namespace ends. So with ``lab --keep`` the
first process continues to run, and its pid is in a file in the user's runtime directory.
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
    """Whether this process must enter a user namespace, because it does not run as root."""
    return os.geteuid() != 0


def run(argv: Sequence[str], *, keep: bool) -> int:
    """Run ``argv`` (the lab's own command) in a new user namespace. Returns its exit code.

    With ``keep`` the namespace stays when ``argv`` has ended. If user namespaces are not allowed, raises NetnsError
    with a text that explains how to allow them.
    """
    if shutil.which('unshare') is None:
        raise NetnsError('the lab needs root, or the program unshare (package util-linux) to run without root')
    probe = subprocess.run([*_UNSHARE, 'true'], capture_output=True, text=True, check=False)
    if probe.returncode:
        raise NetnsError(
            f'the lab needs root here: a user namespace is not allowed ({probe.stderr.strip()}); '
            'run it with sudo, or let the administrator allow user namespaces '
            '(sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0)'
        )
    command = [*_UNSHARE, *shell_command(argv, keep=keep)]
    environment = {**os.environ, INSIDE: '1'}
    if not keep:
        return subprocess.run(command, env=environment, check=False).returncode
    return _run_and_keep(command, environment)


def shell_command(argv: Sequence[str], *, keep: bool) -> list[str]:
    """The command in the user namespace: it mounts a new /run and runs ``argv``.

    With ``keep`` it then creates the file that signals success, and sleeps.
    """
    script = 'ready=$1; shift; mount -t tmpfs tmpfs /run && "$@"'
    if keep:
        script += ' && { echo kept > "$ready"; exec sleep infinity; }'
    return ['sh', '-c', script, 'sh', f'{_pid_file()}.ready', *argv]


def _run_and_keep(command: Sequence[str], environment: dict[str, str]) -> int:
    ready = f'{_pid_file()}.ready'
    if os.path.exists(ready):
        os.unlink(ready)
    # The kept process must not inherit this process's standard output: the reader of a pipe would wait for its end.
    read_fd, write_fd = os.pipe()
    first_process = subprocess.Popen(
        command, env=environment, start_new_session=True, stdin=subprocess.DEVNULL, stdout=write_fd, stderr=write_fd
    )
    os.close(write_fd)
    os.set_blocking(read_fd, False)
    with open(_pid_file(), 'w') as file:
        file.write(f'{first_process.pid}\n')
    code = None
    while code is None and not os.path.exists(ready):
        code = first_process.poll()
        _copy_to_stdout(read_fd)
        time.sleep(0.05)
    _copy_to_stdout(read_fd)
    os.close(read_fd)
    os.unlink(_pid_file() if code is not None else ready)
    return code or 0


def _copy_to_stdout(read_fd: int) -> None:
    try:
        while output := os.read(read_fd, 65536):
            os.write(1, output)
    except BlockingIOError:
        pass


def down() -> bool:
    """End a lab that was started with ``keep``. Returns whether there was one."""
    pid = kept_pid()
    if pid is None:
        return False
    os.kill(pid, signal.SIGKILL)
    os.unlink(_pid_file())
    return True


def kept_pid() -> int | None:
    """Pid of the kept lab's first process (``unshare``), None if there is no such lab."""
    try:
        with open(_pid_file()) as file:
            pid = int(file.read())
        with open(f'/proc/{pid}/cmdline') as cmdline:
            return pid if cmdline.read().startswith('unshare\0') else None
    except (OSError, ValueError):
        return None


def enter(pid: int) -> str:
    """The beginning of a command line that enters the lab whose first process is ``pid``."""
    with open(f'/proc/{pid}/task/{pid}/children') as children:
        inside = children.read().split()[0]
    return f'nsenter --target {inside} --user --net --mount --pid --preserve-credentials '


def _pid_file() -> str:
    directory = os.environ.get('XDG_RUNTIME_DIR') or f'/tmp/metadata_wsgi-{os.getuid()}'  # noqa: S108 (made private below)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    if os.lstat(directory).st_uid != os.getuid():
        raise NetnsError(f'{directory} belongs to another user; set XDG_RUNTIME_DIR to a directory that you own')
    return os.path.join(directory, 'metadata_wsgi-lab.pid')
