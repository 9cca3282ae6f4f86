# SPDX-License-Identifier: Apache-2.0
"""A host with the real keeper, shared proxy and agent before a fake Nova, and guests that send requests."""

import contextlib
import http.client
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

from metadata_wsgi.keeper.attachments_client import AttachmentsClient
from metadata_wsgi.netns import namespaces
from tests.cloud import Cloud
from tests.e2e.conftest import BIN, Program, eventually
from tests.owned_processes import kill_from_file

TARGET = '/openstack/latest/meta_data.json'


class KeeperHost:
    """Starts keeper, shared proxy and agent on one state directory; ``cloud`` has the inventory and the fake Nova."""

    def __init__(self, directory: Path, cloud: Cloud):
        self.cloud = cloud
        self._directory = directory
        self._started = []
        cloud.configure(metadata_one_hop=True)
        cloud.state_path.mkdir()

    def start(self):
        """Start all programs and wait until the workers of both modes are connected to the keeper."""
        self.start_keeper()
        self.start_proxy()
        self.agent = self._start('quantum-metadata-agent', '--config-file', self.cloud.conf_file)
        eventually(lambda: self.workers() == {'shared': 1, 'one_hop': 1}, 'workers of both modes are connected')
        return self

    def start_keeper(self):
        listeners = self.cloud.state_path / 'listeners'
        listeners.unlink(missing_ok=True)
        self.keeper = self._start('metadata-wsgi', 'keeper', '--config-file', self.cloud.conf_file)
        eventually(listeners.exists, 'the keeper listens')

    def start_proxy(self):
        self.proxy = self._start(
            'quantum-ns-metadata-proxy', '--shared', '--nodaemonize', '--verbose',
            f'--state_path={self.cloud.state_path}',
        )  # fmt: skip

    def workers(self):
        return self.attachments.workers()

    @property
    def attachments(self):
        return AttachmentsClient(str(self.cloud.state_path))

    def metadata_wsgi(self, verb, *argv):
        """(exit code, standard output, standard error) of ``metadata-wsgi VERB``."""
        words = [BIN / 'metadata-wsgi', verb, '--config-file', self.cloud.conf_file, *argv]
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, timeout=120)
        return done.returncode, done.stdout, done.stderr

    def attach(self, mode, *argv):
        code, out, err = self.metadata_wsgi('attach', '--no-wait', '--mode', mode, *argv)
        assert (code, err) == (0, '')
        return out

    def text(self):
        """All logs, for the message of a failed test."""
        return '\n'.join(program.text() for program in self._started)

    def _start(self, name, *argv):
        log = self._directory / f'{name}-{len(self._started)}.log'
        self._started.append(Program(log, Path(sys.prefix, 'bin', name), *argv))
        return self._started[-1]

    def close(self):
        for program in self._started:
            program.end()
        for file in self.cloud.state_path.glob('external/pids/*.pid'):
            kill_from_file(file, str(self.cloud.state_path))


def get_instance_id(host='169.254.169.254', port=80, timeout_s=20.0):
    """The instance id in the response to a request from the current namespace, or (status, body) if it is not 200."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    with contextlib.closing(connection):
        connection.request('GET', TARGET)
        response = connection.getresponse()
        body = response.read()
        return json.loads(body)['uuid'] if response.status == 200 else (response.status, body)


def serves(guest, instance_id):
    """Whether the guest gets the id of its instance. False without a response: programs may be starting."""
    try:
        return namespaces.run_in(guest, get_instance_id) == instance_id
    except (OSError, http.client.HTTPException):
        return False


class RequestLoad:
    """Sends requests from guests in a loop, each on a new connection; ``guests``: (namespace, expected instance)."""

    def __init__(self, guests, host='169.254.169.254', port=80):
        self.answered = 0
        self.failures = []
        self._address = (host, port)
        self._running = True
        self._threads = [
            threading.Thread(target=namespaces.run_in, args=(guest, lambda expected=expected: self._send(expected)))
            for guest, expected in guests
        ]
        for thread in self._threads:
            thread.start()

    def _send(self, expected):
        while self._running:
            try:
                got = get_instance_id(*self._address)
            except (OSError, http.client.HTTPException) as error:
                got = error
            if got == expected:
                self.answered += 1
            else:
                self.failures.append(got)
            time.sleep(0.005)

    def more(self, count=30):
        """Wait until ``count`` more requests succeeded, or one failed."""
        target = self.answered + count
        eventually(lambda: self.answered >= target or self.failures, f'{count} more responses', within_s=60)

    def stop(self):
        self._running = False
        for thread in self._threads:
            thread.join()
