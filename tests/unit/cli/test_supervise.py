# SPDX-License-Identifier: Apache-2.0
"""The supervisor with small programs in place of ours, in a process of its own: it handles signals of its children."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from metadata_wsgi.cli import supervise
from metadata_wsgi.errors import ConfigError
from tests.e2e.conftest import eventually
from tests.owned_processes import kill_group

SUPERVISE = """
import logging, sys
from metadata_wsgi.cli import supervise
from metadata_wsgi.cli.supervise import Program, Supervisor
logging.basicConfig(level=logging.INFO)
supervise.FIRST_START_S, supervise.STOP_TIMEOUT_S = {first_start_s}, {stop_timeout_s}
keeper, agent = sys.argv[1:]
sys.exit(Supervisor([
    Program(('sh', '-c', keeper), stops_last=True, reloads=False),
    Program(('sh', '-c', agent)),
]).run())
"""
# Appends to the file "signals" what it gets. wait, not sleep, is interrupted by a signal.
NOTE = 'trap "echo $name TERM >> signals; exit" TERM; trap "echo $name HUP >> signals" HUP; '
WAIT = 'echo $name >> started; while :; do sleep 60 & wait; done'
KEEPER, AGENT = f'name=keeper; {NOTE}{WAIT}', f'name=agent; {NOTE}{WAIT}'


class Supervised:
    def __init__(self, directory):
        self._directory = directory

    def start(self, keeper=KEEPER, agent=AGENT, *, first_start_s=0.0, stop_timeout_s=15.0):
        code = SUPERVISE.format(first_start_s=first_start_s, stop_timeout_s=stop_timeout_s)
        with (self._directory / 'log').open('w') as log:
            self.process = subprocess.Popen(
                ['nohup', sys.executable, '-W', 'ignore', '-c', code, keeper, agent],
                cwd=self._directory, stderr=log, start_new_session=True,
                env={**os.environ, 'PYTHONPATH': str(Path(supervise.__file__).parents[2])},
            )  # fmt: skip

    def lines(self, name):
        try:
            return (self._directory / name).read_text().splitlines()
        except FileNotFoundError:
            return []

    def wait_for_starts(self, count):
        eventually(lambda: len(self.lines('started')) >= count, lambda: str(self.lines('log')))

    def log(self):
        return '\n'.join(self.lines('log'))


@pytest.fixture
def supervised(tmp_path):
    made = Supervised(tmp_path)
    yield made
    # Its programs too.
    kill_group(made.process)
    made.process.wait()


def test_supervisor_stops_the_agent_before_the_keeper_at_sigterm(supervised):
    supervised.start()
    supervised.wait_for_starts(2)
    supervised.process.terminate()
    assert supervised.process.wait(20) == 0
    assert supervised.lines('signals') == ['agent TERM', 'keeper TERM']


def test_supervisor_passes_sighup_to_the_agent_for_a_reload_and_not_to_the_keeper(supervised):
    supervised.start()
    supervised.wait_for_starts(2)
    supervised.process.send_signal(signal.SIGHUP)
    eventually(lambda: supervised.lines('signals'), supervised.log)
    supervised.process.terminate()
    supervised.process.wait(20)
    assert supervised.lines('signals') == ['agent HUP', 'agent TERM', 'keeper TERM']


def test_supervisor_passes_sighup_to_a_program_only_when_it_handles_the_signal(supervised, tmp_path):
    """At its start a program has no handler yet: SIGHUP would end it, and with it the container."""
    starts = 'name=agent; echo agent >> started; until [ -e go ]; do sleep 0.02; done; echo ready >> started; '
    supervised.start(agent=f'{starts}{NOTE}while :; do sleep 60 & wait; done', first_start_s=60.0)
    supervised.wait_for_starts(2)
    supervised.process.send_signal(signal.SIGHUP)
    eventually(lambda: not _is_pending(supervised.process.pid, signal.SIGHUP), supervised.log)
    (tmp_path / 'go').touch()
    eventually(lambda: supervised.lines('signals') or supervised.process.poll() is not None, supervised.log)
    assert (supervised.lines('signals'), supervised.process.poll()) == (['agent HUP'], None), supervised.log()


def _is_pending(pid, number):
    lines = Path(f'/proc/{pid}/status').read_text().splitlines()
    pending = int(next(line.split()[1] for line in lines if line.startswith('ShdPnd:')), 16)
    return bool(pending >> (number - 1) & 1)


def test_supervisor_restarts_a_program_that_ends(supervised):
    supervised.start(agent='echo agent >> started; sleep 0.1; exit 3')
    supervised.wait_for_starts(3)
    assert supervised.process.poll() is None
    assert 'ended: exit code 3. It is started again in 1 s' in supervised.log()


def test_supervisor_ends_with_an_error_if_a_program_fails_at_its_first_start(supervised):
    """As the agent does if its configuration is wrong: the container must show it."""
    supervised.start(agent='exit 1', first_start_s=60.0)
    assert supervised.process.wait(20) == 1
    assert 'ended at its first start: exit code 1. Stopping' in supervised.log()


def test_supervisor_kills_a_program_that_ignores_sigterm(supervised):
    supervised.start(agent='trap "" TERM; echo agent >> started; while :; do sleep 60; done', stop_timeout_s=0.2)
    supervised.wait_for_starts(2)
    supervised.process.terminate()
    assert supervised.process.wait(20) == 0
    assert 'Not ended after 0.2 s, and killed' in supervised.log()


def test_supervisor_programs_of_neutrons_agent_have_its_state_path_and_prefix(tmp_path):
    conf = tmp_path / 'metadata_agent.ini'
    conf.write_text('[DEFAULT]\nstate_path = /var/lib/neutron/kolla\n')
    arguments = ['--config-file', str(conf)]
    keeper, proxy, agent = supervise.programs_of(arguments, is_neutron=True)
    assert agent.argv[1:] == tuple(arguments)
    assert agent.argv[0].endswith('neutron-metadata-agent-wsgi')
    assert keeper.argv[1] == 'keeper'
    assert keeper.argv[-1] == f'--config-file={conf}'
    assert any(word.endswith('neutron_defaults.conf') for word in keeper.argv)
    assert '/var/lib/neutron/kolla' in proxy.argv
    assert '/var/lib/neutron/kolla/metadata_proxy' in proxy.argv
    assert 'X-Neutron' in proxy.argv
    assert [one.stops_last for one in (keeper, proxy, agent)] == [True, False, False]


def test_supervisor_starts_no_shared_proxy_in_mode_one_hop(tmp_path):
    conf = tmp_path / 'metadata_agent.ini'
    conf.write_text('[DEFAULT]\nmetadata_one_hop = true\n')
    names = [
        os.path.basename(one.argv[0]) for one in supervise.programs_of([f'--config-file={conf}'], is_neutron=False)
    ]
    assert names == ['metadata-wsgi', 'quantum-metadata-agent']


def test_supervisor_refuses_a_configuration_that_cannot_be_read(tmp_path):
    conf = tmp_path / 'metadata_agent.ini'
    conf.write_text('[DEFAULT]\nmetadata_one_hop = perhaps\n')
    with pytest.raises(ConfigError, match='metadata_one_hop'):
        supervise.programs_of([f'--config-file={conf}'], is_neutron=False)
