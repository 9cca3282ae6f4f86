# SPDX-License-Identifier: Apache-2.0
"""SIGUSR1; ``tests/netns/units`` sends it to running services."""

import os
import signal
import subprocess
import sys

import pytest

from metadata_wsgi.errors import MetadataError
from metadata_wsgi.server import reexec

PROGRAM = """
import os, socket, sys
from metadata_wsgi.net import sd_notify
from metadata_wsgi.server import reexec
former = reexec.former_workers()
inherited = dict(sd_notify.inherited())
if not former:
    listening = [socket.create_server(('127.0.0.1', 0)) for _ in 'ab']
    # Their numbers are those that the other one gets.
    reexec.execute_again({'b': listening[1].fileno(), 'a': listening[0].fileno()}, [7, 8], {'NOTIFY_SOCKET': '/n'})
ports = [socket.socket(fileno=inherited[name]).getsockname()[1] > 0 for name in 'ab']
print(sys.argv[1:], former, sorted(inherited.values()), ports, os.environ['NOTIFY_SOCKET'],
      [name for name in os.environ if name.startswith(('LISTEN_', 'METADATA_WSGI_FORMER'))])
"""


def test_reexec_passes_arguments_sockets_workers_and_the_removed_variables(tmp_path):
    program = tmp_path / 'program.py'
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', program, '--config-file', 'x'], capture_output=True, text=True, check=False
    )
    assert done.stdout == "['--config-file', 'x'] [7, 8] [3, 4] [True, True] /n []\n", done.stderr


CHECKED = """
import os, sys
from metadata_wsgi.errors import MetadataError
from metadata_wsgi.server import reexec
if reexec.is_check():
    sys.exit(sys.argv[1] or 0)
try:
    reexec.check_installed_program()
except MetadataError as error:
    print(error)
else:
    print('it can start')
"""


@pytest.mark.parametrize(
    ('result', 'printed'), [('', 'it can start'), ('x: no such option', 'exit status 1: x: no such option')]
)
def test_reexec_checks_whether_the_installed_program_can_start(tmp_path, result, printed):
    program = tmp_path / 'program.py'
    program.write_text(CHECKED)
    done = subprocess.run([sys.executable, program, result], capture_output=True, text=True, check=False)
    assert done.stdout == f'{printed}\n', done.stderr


def test_reexec_check_of_a_program_that_is_missing_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'executable', str(tmp_path / 'missing'))
    before = signal.getsignal(signal.SIGCHLD)
    try:
        with pytest.raises(MetadataError, match='No such file or directory'):
            reexec.check_installed_program()
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.parametrize(('text', 'pids'), [('', []), ('12,13', [12, 13]), ('12,x', [12])])
def test_reexec_former_workers_are_read_once(text, pids):
    environ = {reexec.FORMER_WORKERS: text} if text else {}
    assert (reexec.former_workers(environ), environ) == (pids, {})


def test_reexec_ends_its_children_and_no_other_process_that_has_got_the_number():
    # The shell's child is not ours.
    shell_of_another = ['sh', '-c', 'sleep 600 & echo $!; wait']
    with (
        subprocess.Popen(['sleep', '600']) as child,
        subprocess.Popen(shell_of_another, stdout=subprocess.PIPE) as shell,
    ):
        grandchild = int(shell.stdout.readline())
        reexec.end([grandchild, child.pid, 2**22 + 1])
        assert child.wait(20) == -signal.SIGTERM
        os.kill(grandchild, 0)
        os.kill(grandchild, signal.SIGKILL)


FAILING = """
import os, socket, sys
from metadata_wsgi.server import reexec
peer, third = socket.socketpair()
os.set_inheritable(peer.fileno(), True)
listener = socket.create_server(('127.0.0.1', 0))
before = sorted((name, os.stat(f'/proc/self/fd/{name}').st_ino, os.get_inheritable(int(name)))
                for name in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{name}'))
sys.executable = '/missing/python'
try:
    reexec.execute_again({'s': listener.fileno(), 't': listener.fileno(), 'u': listener.fileno()}, [], {})
except FileNotFoundError:
    after = sorted((name, os.stat(f'/proc/self/fd/{name}').st_ino, os.get_inheritable(int(name)))
                   for name in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{name}'))
    print(before == after or (before, after))
"""


def test_after_a_failed_reexec_every_descriptor_is_as_before(tmp_path):
    """The numbers of the passed sockets belonged to other files, for example systemd's socket."""
    program = tmp_path / 'program.py'
    program.write_text(FAILING)
    done = subprocess.run([sys.executable, '-W', 'ignore', program], capture_output=True, text=True, check=False)
    assert done.stdout == 'True\n', done


SIGNALLED = """
import os, signal, sys, time
from metadata_wsgi.server import reexec
if reexec.former_workers():
    got = []
    for number in reexec.BLOCKED:
        signal.signal(number, lambda number, frame: got.append(number))
    reexec.unblock_signals()
    print(sorted(got) == sorted(reexec.BLOCKED) and not signal.sigpending())
else:
    execve = os.execve
    def signalled(*arguments):
        for number in reexec.BLOCKED:
            os.kill(os.getpid(), number)
        execve(*arguments)
    os.execve = signalled
    reexec.execute_again({}, [7], {})
"""


def test_signals_that_arrive_during_a_reexec_are_handled_after_it(tmp_path):
    """The action of a new program is to end at these signals, until it has set its handlers."""
    stop = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}
    assert {signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, *stop} == reexec.BLOCKED
    program = tmp_path / 'program.py'
    program.write_text(SIGNALLED)
    done = subprocess.run([sys.executable, '-W', 'ignore', program], capture_output=True, text=True, check=False)
    assert done.stdout == 'True\n', done


def test_a_failed_reexec_unblocks_the_signals(monkeypatch):
    def fail(*arguments):
        raise FileNotFoundError

    monkeypatch.setattr(os, 'execve', fail)
    with pytest.raises(FileNotFoundError):
        reexec.execute_again({}, [], {})
    assert not reexec.BLOCKED & signal.pthread_sigmask(signal.SIG_BLOCK, ())
