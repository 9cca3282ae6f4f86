# SPDX-License-Identifier: Apache-2.0
"""``metadata-wsgi report``, SIGUSR2 and ``status --failures`` with running programs."""

import base64
import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import uuid
from urllib.parse import quote, quote_plus

import pytest

from metadata_wsgi import limits
from metadata_wsgi.failures import shared_memory, table
from tests.cloud import SECRET, Cloud
from tests.rawserver import RawServer, responds_with

from .conftest import BIN, UnixConnection, eventually, request

# With characters that every encoding changes.
PASSWORD = 'pass/word+with %and=é"quotes'
DATABASE = 'database-Password.77'
FILE_SECRET = 'old~secret/in a+file'


def run(*words):
    return subprocess.run([BIN / 'metadata-wsgi', *map(str, words)], capture_output=True, text=True, check=False)


def send(cloud, address='10.1.1.99', path='/openstack/latest/meta_data.json'):
    headers = {'X-Forwarded-For': address, 'X-Quantum-Router-ID': cloud.router_id}
    return request(UnixConnection(cloud.socket), 'GET', path, headers)[0]


@pytest.fixture
def cloud(tmp_path):
    """With a router id of its own: other tests may run at the same time, and their failures are read, too."""
    with Cloud(tmp_path, f'router-{uuid.uuid4()}') as made:
        yield made


def failures(cloud):
    """The recent failures of this cloud's router, by address."""
    rows = table.merge(shared_memory.read_all())
    return {row.address: row for row in rows if row.namespace_id == cloud.router_id}


@pytest.fixture
def three_secrets(cloud, tmp_path):
    """A host with secrets in its files: the configuration, a file of Neutron, and a file for one secret."""
    (tmp_path / 'old_secret').write_text(FILE_SECRET + '\n')
    neutron = tmp_path / 'neutron.conf'
    neutron.write_text(
        f'[database]\nconnection = mysql+pymysql://neutron:{DATABASE}@db/neutron\n'
        f'[keystone_authtoken]\nusername = neutron\npassword = {PASSWORD}\n'
    )
    log = tmp_path / 'agent.log'
    cloud.configure(
        metadata_proxy_shared_secret_old_file=tmp_path / 'old_secret', log_file=log, metadata_proxy_shared_secret=SECRET
    )
    return ['--config-file', neutron, '--config-file', cloud.conf_file], log


def forms(secret):
    """The secret, plain and encoded, as bytes."""
    data = secret.encode()
    found = {
        data,
        data.hex().encode(),
        data.hex().upper().encode(),
        quote(secret).encode(),
        quote_plus(secret).encode(),
    }
    found |= {quote(secret, safe='').encode(), json.dumps(secret)[1:-1].encode(), repr(secret)[1:-1].encode()}
    for start in range(3):
        encoded = base64.b64encode(b'x' * start + data + b'yyy')
        found.add(encoded[(8 * start + 5) // 6 : 8 * (start + len(data)) // 6])
    return found


def test_report_of_a_host_with_secrets_in_its_files_contains_none_of_them(agent, cloud, three_secrets, tmp_path):
    options, log = three_secrets
    secrets = (SECRET, PASSWORD, DATABASE, FILE_SECRET)
    with log.open('a') as file:
        # As a library might log them, in every encoding.
        for secret in secrets:
            for form in forms(secret):
                file.write(f'2026-11-25 12:00:00.000 1 WARNING somewhere failed with {form.decode()} here\n')
    done = run('report', *options, '--state-path', cloud.state_path, '--output', tmp_path / 'report.txt')
    assert (done.returncode, done.stderr) == (0, ''), done.stderr
    data = (tmp_path / 'report.txt').read_bytes()
    assert [form for secret in secrets for form in forms(secret) if form in data] == []
    assert b'WARNING somewhere failed with *** here' in data
    assert stat.S_IMODE(os.stat(tmp_path / 'report.txt').st_mode) == 0o600
    text = data.decode()
    for title in ('Versions', 'Configuration', 'Pipeline', 'Status', 'Processes', 'Recent failures', 'Rules of ours'):
        assert f'\n== {title}\n' in text
    assert 'metadata_proxy_shared_secret = ***' in text
    assert 'password = (not shown: an option of another program)' in text
    assert 'nova_metadata_host = 127.0.0.1' in text
    assert 'unexpected error' not in text


def test_report_of_a_host_whose_configuration_cannot_be_parsed_names_the_line_and_no_secret(cloud, tmp_path):
    cloud.conf_file.write_text(f'[DEFAULT]\nstate_path = {cloud.state_path}\nmetadata_proxy_shared_secret\n{SECRET}\n')
    done = run('report', '--config-file', cloud.conf_file, '--output', '-')
    assert done.returncode == 0, done.stderr
    assert 'not a configuration file' in done.stdout
    assert SECRET not in done.stdout


def test_sigusr2_of_the_agent_writes_a_report_and_serves_on(agent, cloud):
    program = agent()
    workers = program.workers()
    assert send(cloud) == 404
    eventually(lambda: '10.1.1.99' in failures(cloud), 'the failure is published')
    program.kill(signal.SIGUSR2)
    path = cloud.state_path / 'report-quantum-metadata-agent.txt'
    eventually(path.exists, lambda: program.text())
    text = path.read_text()
    assert f'{cloud.router_id}  10.1.1.99' in text
    assert f'pid {program.pid} serves {cloud.socket}' in text
    assert SECRET not in text
    assert set(workers) <= set(program.workers())
    assert send(cloud, '10.1.1.2') == 200


def test_sigusr2_of_a_namespace_proxy_writes_a_report(proxy, cloud):
    cloud.state_path.mkdir()
    program, _ = proxy()
    program.kill(signal.SIGUSR2)
    path = cloud.state_path / f'report-quantum-ns-metadata-proxy-{cloud.router_id}.txt'
    eventually(path.exists, lambda: program.text())


def test_failures_of_an_instance_have_its_address_reason_and_count(agent, cloud):
    agent()
    for path in ('/openstack', '/latest/meta-data?password=not-kept', '/a%1b[2Jb'):
        assert send(cloud, path=path) == 404
    assert send(cloud, '10.1.1.9') == 404
    eventually(lambda: '10.1.1.9' in failures(cloud), 'the failures are published')
    done = run('status', '--failures', '-f', 'json')
    rows = {row['address']: row for row in json.loads(done.stdout) if row['id'] == cloud.router_id}
    row = rows['10.1.1.99']
    assert (row['kind'], row['status'], row['reason']) == ('router', 404, 'no instance has this address')
    assert (row['count'], row['path']) == (3, '/a%1B%5B2Jb')
    assert '2 instances match: ports port-d' in rows['10.1.1.9']['reason']
    done = run('status', '--failures')
    assert done.stdout.startswith('LAST ')
    assert 'not-kept' not in done.stdout
    assert '\x1b' not in done.stdout


def test_failures_survive_a_reload_and_the_end_of_a_worker(agent, cloud):
    program = agent()
    assert send(cloud) == 404
    eventually(lambda: '10.1.1.99' in failures(cloud), 'the failure is published')
    before = program.workers()
    program.kill(signal.SIGHUP)
    eventually(lambda: program.workers() and not set(before) & set(program.workers()), 'the workers are new')
    assert failures(cloud)['10.1.1.99'].count == 1
    os.kill(program.workers()[0], signal.SIGKILL)
    assert failures(cloud)['10.1.1.99'].count == 1


def test_failures_of_nova_and_of_the_agent_name_who_failed(agent, proxy, guest, cloud):
    program = agent()
    cloud.nova.secret = b'another'
    assert send(cloud, '10.1.1.2') == 403
    eventually(lambda: '10.1.1.2' in failures(cloud), 'the failure is published')
    row = failures(cloud)['10.1.1.2']
    assert (row.instance_id, row.reason) == ('instance-a', 'Nova refuses the signature: compare the shared secrets')
    _, port = proxy(None, '--request_timeout=1')
    program.end()
    assert guest(port)[0] == 503
    eventually(lambda: '127.0.0.1' in failures(cloud), 'the failure is published')
    row = failures(cloud)['127.0.0.1']
    assert row.reason.startswith('no response from the metadata agent: ')


def test_a_response_of_nova_that_is_cut_off_is_one_failure(agent, proxy, cloud):
    """Namespace proxy and agent both notice it."""
    half = b'HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n' % (4 * limits.MAX_BUFFERED_BYTES)
    nova = RawServer(responds_with(half + b'x' * 2 * limits.MAX_BUFFERED_BYTES))
    cloud.configure(nova_metadata_port=nova.port)
    agent()
    _, port = proxy(None)
    with contextlib.closing(nova), socket.create_connection(('127.0.0.1', port), timeout=15) as client:
        client.sendall(b'GET / HTTP/1.1\r\nConnection: close\r\n\r\n')
        with client.makefile('rb') as response:
            assert response.readline() == b'HTTP/1.1 200 OK\r\n'
            response.read()
    # Later failures of each program: when they are published, the first one is too.
    assert send(cloud) == 404
    with socket.create_connection(('127.0.0.1', port), timeout=15) as client:
        client.sendall(b'\0\r\n\r\n')
        assert client.recv(100).startswith(b'HTTP/1.1 400 ')

    def rows():
        found = table.merge(shared_memory.read_all())
        return {(row.address, row.status): row for row in found if row.namespace_id == cloud.router_id}

    eventually(lambda: {('127.0.0.1', 400), ('10.1.1.99', 404)} <= set(rows()), 'the later failures are published')
    assert rows()['127.0.0.1', 0].count == 1
    assert len(rows()) == 3
