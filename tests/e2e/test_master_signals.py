# SPDX-License-Identifier: Apache-2.0
"""Signals to the master, and its log files."""

import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from tests.cloud import SHIPPED
from tests.e2e.conftest import UnixConnection, eventually, free_port, programs_in, request


def send(path, data):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(data)
        return connection.recv(1000)


def responds(path):
    try:
        return request(UnixConnection(path), 'GET', '/')[0] == 400
    except OSError:
        return False


@pytest.fixture
def agent_with_log_file(programs, cloud, tmp_path):
    """Starts an agent that logs to a file; returns the program and the path of the file."""
    log = tmp_path / 'agent.log'
    cloud.configure(log_file=log)
    program = programs('quantum-metadata-agent', '--config-file', cloud.conf_file)
    eventually(lambda: program.process.poll() is not None or responds(cloud.socket), 'the agent serves')
    assert program.process.poll() is None, program.text()
    return program, log


def test_after_log_rotation_and_sighup_new_workers_log_to_the_new_file(agent_with_log_file, cloud):
    program, log = agent_with_log_file
    log.rename(log.with_suffix('.log.1'))
    program.kill(signal.SIGHUP)

    def a_worker_has_logged():
        send(cloud.socket, b'\0\r\n\r\n')
        return log.exists() and 'Refused a malformed request' in log.read_text()

    eventually(a_worker_has_logged, 'a new worker logs to the new file')


def test_sighup_without_the_directory_of_the_log_file_does_not_end_the_agent(programs, cloud, tmp_path):
    """Or without the right to make a file there. The former file is written on."""
    directory = tmp_path / 'log'
    directory.mkdir()
    cloud.configure(log_file=directory / 'agent.log')
    program = programs('quantum-metadata-agent', '--config-file', cloud.conf_file)
    eventually(lambda: program.process.poll() is not None or responds(cloud.socket), 'the agent serves')
    moved = directory.rename(tmp_path / 'moved') / 'agent.log'
    (former,) = program.workers()
    program.kill(signal.SIGHUP)
    eventually(
        lambda: program.process.poll() is not None or (program.workers() and former not in program.workers()),
        lambda: program.text() + moved.read_text(),
    )
    assert program.process.poll() is None, program.text() + moved.read_text()
    assert responds(cloud.socket)
    eventually(lambda: 'Reloaded' in moved.read_text(), moved.read_text)


def test_sigterm_ends_the_master_during_a_reload_that_hangs(agent_with_log_file, cloud):
    """The configuration file becomes a FIFO without a writer: opening it blocks, as on a file server that is down."""
    program, log = agent_with_log_file
    cloud.conf_file.unlink()
    os.mkfifo(cloud.conf_file)
    program.kill(signal.SIGHUP)
    eventually(lambda: 'Handling signal: hup' in log.read_text(), 'the reload has begun')
    program.kill(signal.SIGTERM)
    assert program.wait() == 0
    assert 'Not reloaded' in log.read_text()


def test_the_former_worker_serves_until_the_new_one_has_loaded_at_a_reload(programs, cloud, tmp_path):
    """Also if another reload comes meanwhile, which the new worker does not survive."""
    paste = tmp_path / 'api-paste.ini'
    held = f'[filter:held]\npaste.filter_factory = tests.e2e.held_load:filter_factory\ndirectory = {tmp_path}\n'
    paste.write_text(SHIPPED.read_text().replace('pipeline = catch_errors', 'pipeline = held catch_errors') + held)
    cloud.configure(metadata_paste_config=paste)
    environ = {**os.environ, 'PYTHONPATH': str(Path(__file__).parents[2])}
    program = programs('quantum-metadata-agent', '--config-file', cloud.conf_file, env=environ)
    eventually(lambda: program.process.poll() is not None or responds(cloud.socket), 'the agent serves')
    assert program.process.poll() is None, program.text()
    (former,) = program.workers()
    hold, waiting = tmp_path / 'hold', tmp_path / 'waiting'
    for _ in range(2):
        waiting.unlink(missing_ok=True)
        # The check of the configuration loads the pipeline first.
        hold.write_text('1')
        program.kill(signal.SIGHUP)
        eventually(lambda: waiting.exists() and waiting.read_text(), program.text)
        for _ in range(3):
            assert responds(cloud.socket), program.text()
        assert former in program.workers()
    hold.unlink()
    last = int(waiting.read_text())
    eventually(lambda: program.workers() == [last], lambda: f'{program.workers()}, not {last}: {program.text()}')
    assert responds(cloud.socket)


def test_a_replacement_worker_that_cannot_load_does_not_end_the_agent(programs, cloud):
    """As after an edit with a fault that was not reloaded yet. The other worker serves; a reload starts new ones."""
    cloud.configure(metadata_workers=2)
    program = programs('quantum-metadata-agent', '--config-file', cloud.conf_file)
    eventually(lambda: program.process.poll() is not None or responds(cloud.socket), 'the agent serves')
    eventually(lambda: len(program.workers()) == 2, program.text)
    first, other = program.workers()
    cloud.configure(metadata_workers=2, nova_metadata_host='nova:x')
    os.kill(first, signal.SIGKILL)
    eventually(
        lambda: program.process.poll() is not None or 'A new worker could not load' in program.text(), program.text
    )
    assert program.process.poll() is None, program.text()
    eventually(lambda: program.workers() == [other], program.text)
    assert responds(cloud.socket)
    cloud.configure(metadata_workers=2)
    program.kill(signal.SIGHUP)
    eventually(
        lambda: len(program.workers()) == 2 and other not in program.workers(),
        lambda: f'new workers: {program.workers()} {program.text()}',
    )
    assert responds(cloud.socket)


def test_sigusr1_after_a_chmod_of_the_socket_corrects_the_mode(programs, cloud):
    program = programs('quantum-metadata-agent', '--config-file', cloud.conf_file)
    eventually(lambda: program.process.poll() is not None or responds(cloud.socket), 'the agent serves')
    (former,) = program.workers()
    mode = os.stat(cloud.socket).st_mode
    os.chmod(cloud.socket, 0o666)
    program.kill(signal.SIGUSR1)
    eventually(
        lambda: program.process.poll() is not None or (program.workers() and former not in program.workers()),
        program.text,
    )
    assert program.process.poll() is None, program.text()
    assert os.stat(cloud.socket).st_mode == mode
    assert responds(cloud.socket)


def test_sigusr1_while_the_configuration_has_a_fault_does_not_end_the_agent(programs, cloud, tmp_path):
    """As at an upgrade after an edit that was not reloaded yet. After the correction SIGUSR1 has its effect."""
    program = programs('quantum-metadata-agent', '--config-file', cloud.conf_file)
    eventually(lambda: program.process.poll() is not None or responds(cloud.socket), 'the agent serves')
    (former,) = program.workers()
    faults = [
        ({'nova_metadata_host': 'nova:x'}, 'nova_metadata_host'),
        ({'metadata_workers': -1}, 'metadata_workers'),
        ({'metadata_paste_config': tmp_path / 'missing.ini'}, 'missing.ini'),
    ]
    for number, (options, name) in enumerate(faults, 1):
        cloud.configure(**options)
        program.kill(signal.SIGUSR1)
        eventually(
            lambda number=number: (
                program.process.poll() is not None or program.text().count('this one continues') == number
            ),
            program.text,
        )
        assert program.process.poll() is None, program.text()
        line = program.text().split('The installed program cannot start')[-1]
        assert name in line
        assert 'Traceback' not in program.text()
        assert program.workers() == [former]
        assert responds(cloud.socket)
    cloud.configure()
    program.kill(signal.SIGUSR1)
    eventually(
        lambda: program.process.poll() is not None or (program.workers() and former not in program.workers()),
        program.text,
    )
    assert program.process.poll() is None, program.text()
    assert responds(cloud.socket)


def blocks_signal(pid, number):
    (line,) = [line for line in Path(f'/proc/{pid}/status').read_text().splitlines() if line.startswith('SigBlk:')]
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)


def wait_until_installed_program_starts(program):
    """From then on signals are blocked, until the new program has its handlers."""
    eventually(
        lambda: (
            program.process.poll() is not None
            or blocks_signal(program.pid, signal.SIGHUP)
            or program.text().count('Booting worker') > 1
        ),
        program.text,
    )


def test_sighup_and_sigusr2_while_the_installed_program_is_started_do_not_end_it(programs, cloud):
    program = programs('quantum-metadata-agent', '--config-file', cloud.conf_file)
    eventually(lambda: program.process.poll() is not None or responds(cloud.socket), 'the agent serves')
    (former,) = program.workers()
    program.kill(signal.SIGUSR1)
    # A signal that arrives earlier is lost: it is in the queue of the former program.
    wait_until_installed_program_starts(program)
    for _ in range(3):
        program.kill(signal.SIGHUP)
        program.kill(signal.SIGUSR2)
    eventually(lambda: program.process.poll() is not None or program.text().count('Handling signal: hup'), program.text)
    eventually(
        lambda: program.process.poll() is not None or (program.workers() and former not in program.workers()),
        program.text,
    )
    assert program.process.poll() is None, program.text()
    assert responds(cloud.socket)


def test_sigterm_while_the_installed_program_is_started_is_a_graceful_stop(programs, cloud):
    program = programs('quantum-metadata-agent', '--config-file', cloud.conf_file)
    eventually(lambda: program.process.poll() is not None or responds(cloud.socket), 'the agent serves')
    program.kill(signal.SIGUSR1)
    wait_until_installed_program_starts(program)
    program.kill(signal.SIGTERM)
    assert program.wait() == 0, program.text()
    # The former worker. A worker that is killed does not log this.
    assert 'Worker exiting' in program.text()


@pytest.mark.parametrize('change', ['none', 'removed', 'replaced'])
def test_a_stop_removes_only_its_own_socket_file_and_is_graceful(programs, cloud, change):
    program = programs('quantum-metadata-agent', '--config-file', cloud.conf_file)
    eventually(lambda: program.process.poll() is not None or responds(cloud.socket), 'the agent serves')
    with socket.socket(socket.AF_UNIX) as newer:
        if change != 'none':
            os.unlink(cloud.socket)
        if change == 'replaced':
            newer.bind(str(cloud.socket))
        program.kill(signal.SIGTERM)
        assert program.wait() == 0, program.text()
    # A worker that is killed does not log this.
    assert 'Worker exiting' in program.text()
    assert os.path.exists(cloud.socket) is (change == 'replaced')


def test_the_stack_of_a_hung_worker_is_logged_when_the_master_aborts_it(programs, cloud):
    """With SIGABRT, after limits.WORKER_TIMEOUT_S without a heartbeat. Another worker is started."""
    program = programs('quantum-metadata-agent', '--config-file', cloud.conf_file)
    eventually(lambda: program.process.poll() is not None or responds(cloud.socket), 'the agent serves')
    (hung,) = program.workers()
    os.kill(hung, signal.SIGABRT)
    eventually(lambda: program.workers() and hung not in program.workers(), program.text)
    eventually(lambda: responds(cloud.socket), program.text)
    assert 'Fatal Python error: Aborted' in program.text()
    assert f'Worker (pid:{hung}) was sent SIGABRT!' in program.text()


def test_sigterm_reaches_a_worker_that_was_just_forked(tmp_path):
    """Until a worker has set its signal handlers it has those of the master, which only queue the signal."""
    hold, waiting = tmp_path / 'hold', tmp_path / 'waiting'
    hold.touch()
    environ = {**os.environ, 'PYTHONPATH': str(Path(__file__).parents[2])}
    with programs_in(tmp_path) as start:
        program = start('held', sys.executable, '-m', 'tests.e2e.held_fork', tmp_path, env=environ)
        eventually(waiting.exists, program.text)
        program.kill(signal.SIGTERM)
        eventually(lambda: 'Handling signal: term' in program.text(), program.text)
        hold.unlink()
        assert program.wait() == 0
        # A worker that is killed does not log this.
        assert 'Worker exiting' in program.text()


def test_an_agent_with_a_rotating_log_file_does_not_start(programs, cloud, tmp_path):
    cloud.configure(log_file=tmp_path / 'agent.log', log_rotation_type='size')
    program = programs('quantum-metadata-agent', '--config-file', cloud.conf_file)
    assert program.wait() == 1
    assert 'quantum-metadata-agent: log_rotation_type: ' in program.text()


@pytest.mark.skipif(os.path.exists('/dev/log'), reason='there is a syslog')
def test_a_namespace_proxy_with_use_syslog_serves_without_dev_log(programs, cloud, agent, guest):
    agent()
    port = free_port()
    program = programs(
        'quantum-ns-metadata-proxy', '--nodaemonize', '--use-syslog', f'--router_id={cloud.router_id}',
        f'--state_path={cloud.state_path}', f'--metadata_port={port}', '--metadata_host=127.0.0.1',
    )  # fmt: skip

    def serves():
        try:
            return guest(port)[0] == 200
        except OSError:
            return False

    eventually(lambda: program.process.poll() is not None or serves(), 'the namespace proxy serves')
    assert program.process.poll() is None, program.text()
