# SPDX-License-Identifier: Apache-2.0
"""``bin/metadata-wsgi-haproxy``: which configurations it takes, and that all others start the real haproxy."""

import contextlib
import errno
import gc
import os
import select
import shutil
import socket
import subprocess
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadata_wsgi.keeper import admin_client, holders, protocol
from metadata_wsgi.keeper.protocol import Listener
from metadata_wsgi.netns import haproxy
from tests.e2e.conftest import free_port
from tests.neutron_haproxy import DEFAULTS
from tests.unit.keeper.loopback_keeper import LoopbackNamespaces, RunningKeeper

PROGRAM = Path(__file__).parents[2] / 'bin' / 'metadata-wsgi-haproxy'
ID = '6d1f8c1e-3b0a-4c55-9f63-0a1b2c3d4e5f'

# What Neutron's agents write, by its facts: the sections, their directives and their order.
TOP = """
global
    log         /dev/log local0 {level}
    log-tag     haproxy-metadata-proxy-{id}
    user        neutron
    group       neutron
    maxconn     1024
    nbthread    2
    pidfile     {pids}/{id}.pid.haproxy
    daemon
"""
TOP += f'{DEFAULTS}    log global\n    option httplog\n'
LISTEN = """
listen listener
    {binds}
    server metadata /var/lib/neutron/metadata_proxy

    {headers}
"""
LIMITED = """
backend base_rate_limiter
    stick-table type ip size 10k expire 60s store http_req_rate(60s)

backend burst_rate_limiter
    stick-table type ip size 10k expire 60s store http_req_rate(10s)

listen listener
    {binds}

    http-request track-sc0 src table base_rate_limiter
    http-request track-sc1 src table burst_rate_limiter
    http-request deny deny_status 429 if {{ src_http_req_rate(base_rate_limiter) gt 10 }}
    http-request deny deny_status 429 if {{ src_http_req_rate(burst_rate_limiter) gt 10 }}

    server metadata /var/lib/neutron/metadata_proxy

    {headers}
"""
ROUTER = f'http-request del-header X-Neutron-Network-ID\n    http-request set-header X-Neutron-Router-ID {ID}'
NETWORK = f'http-request del-header X-Neutron-Router-ID\n    http-request set-header X-Neutron-Network-ID {ID}'
OVN = f'http-request add-header X-OVN-Network-ID {ID}'
DHCP_BINDS = 'bind 169.254.169.254:80\n    bind [fe80::a9fe:a9fe]:80 interface tap1a2b3c4d-5e'


def loaded():
    return haproxy._loaded(str(PROGRAM))


program = loaded()


@contextlib.contextmanager
def sockets_left_to_the_kernel():
    """The program does not close its sockets, because it ends soon."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ResourceWarning)
        yield
        gc.collect()


def run_main(*argv):
    """Run the program in this process; returns its exit code."""
    with sockets_left_to_the_kernel():
        return program.main(list(argv))


def written(directory, text, *, kind='ns-metadata-proxy', name=f'{ID}.conf', **values):
    values = {'level': 'info', 'id': ID, 'pids': directory / 'external' / 'pids', **values}
    path = directory / kind / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.format(**values))
    return str(path)


@pytest.mark.parametrize(
    ('body', 'binds', 'headers', 'kind', 'wanted'),
    [
        (LISTEN, 'bind 0.0.0.0:9697', ROUTER, 'ns-metadata-proxy', ('router', 9697, [''])),
        (LISTEN, 'bind :::9697', ROUTER, 'ns-metadata-proxy', ('router', 9697, [''])),
        (LIMITED, 'bind :::9697', ROUTER, 'ns-metadata-proxy', ('router', 9697, [''])),
        (LISTEN, 'bind 169.254.169.254:80', NETWORK, 'ns-metadata-proxy', ('network', 80, ['169.254.169.254'])),
        (
            LISTEN, DHCP_BINDS, NETWORK, 'ns-metadata-proxy',
            ('network', 80, ['169.254.169.254', 'fe80::a9fe:a9fe%tap1a2b3c4d-5e']),
        ),
        (
            LIMITED, DHCP_BINDS, OVN, 'ovn-metadata-proxy',
            ('network', 80, ['169.254.169.254', 'fe80::a9fe:a9fe%tap1a2b3c4d-5e']),
        ),
    ],
    ids=['L3', 'L3 IPv6', 'L3 rate limiting', 'DHCP', 'DHCP IPv6', 'OVN rate limiting'],
)  # fmt: skip
def test_a_configuration_of_a_neutron_agent_is_taken(tmp_path, body, binds, headers, kind, wanted):
    spec = program.from_configuration(written(tmp_path, TOP + body, binds=binds, headers=headers, kind=kind))
    assert (spec.kind, spec.port, spec.hosts) == wanted
    assert (spec.state_path, spec.id) == (str(tmp_path), ID)
    assert spec.pid_file == f'{tmp_path}/external/pids/{ID}.pid.haproxy'
    assert program.Spec(*spec.argv()[:5], spec.argv()[5:]).__dict__ == spec.__dict__


@pytest.mark.parametrize(
    ('old', 'new'),
    [
        ('maxconn     1024', 'maxconn     1024\n    stats socket /run/haproxy.sock'),
        ('mode http', 'mode tcp'),
        ('option httplog', 'option httpchk'),
        ('listen listener', 'frontend listener'),
        ('bind 0.0.0.0:9697', 'bind 0.0.0.0:9697 ssl crt /etc/cert.pem'),
        ('bind 0.0.0.0:9697', 'bind 0.0.0.0:9697\n    bind 0.0.0.0:9698'),
        ('bind 0.0.0.0:9697', ''),
        ('server metadata', 'server other'),
        ('server metadata /', 'server metadata 127.0.0.1:80 # /'),
        ('    http-request set-header', '    http-request set-path /x'),
        ('set-header X-Neutron-Router-ID', 'set-header X-Neutron-Tenant-ID'),
        (f'X-Neutron-Router-ID {ID}', 'X-Neutron-Router-ID 00000000-0000-4000-8000-000000000000'),
        (ROUTER, f'{ROUTER}\n    http-request set-header X-Neutron-Network-ID {ID}'),
        ('    daemon\n', '    daemon\n    chroot /var/lib/haproxy\n'),
        ('pidfile     /', 'pidfile     x/'),
        (f'{ID}.pid.haproxy', 'shadow'),
    ],
)  # fmt: skip
def test_a_configuration_with_anything_else_is_left_to_haproxy(tmp_path, old, new):
    text = (TOP + LISTEN).format(
        level='info', id=ID, pids=tmp_path, binds='bind 0.0.0.0:9697', headers=ROUTER
    )  # fmt: skip
    assert old in text
    path = written(tmp_path, text.replace(old, new, 1).replace('{', '{{').replace('}', '}}'))
    with pytest.raises(program.NotOurs):
        program.from_configuration(path)


@pytest.mark.parametrize(
    ('kind', 'name'),
    [('haproxy', f'{ID}.conf'), ('ns-metadata-proxy', 'haproxy.cfg'), ('ns-metadata-proxy', f'{ID}.cfg')],
)
def test_a_configuration_of_another_program_is_left_to_haproxy(tmp_path, kind, name):
    path = written(tmp_path, TOP + LISTEN, binds='bind 0.0.0.0:9697', headers=ROUTER, kind=kind, name=name)
    with pytest.raises(program.NotOurs) as error:
        program.from_configuration(path)
    assert str(error.value) == ''  # nothing to report: the host's own haproxy


@given(st.text(alphabet=st.characters(exclude_categories=('Cs',)), max_size=60).filter(lambda text: text.strip()))
def test_no_unknown_line_is_ever_taken(tmp_path_factory, line):
    first = line.split()[0] if line.split() else '#'
    if first.startswith('#') or first in ('log', 'option', 'timeout', 'retries', 'mode', 'global', 'defaults', 'bind'):
        return
    path = written(tmp_path_factory.mktemp('any'), TOP + LISTEN, binds='bind 0.0.0.0:9697', headers=ROUTER)
    text = Path(path).read_text(encoding='utf-8')
    Path(path).write_text(text.replace('    mode http\n', f'    mode http\n{line}\n', 1), encoding='utf-8')
    with pytest.raises((program.NotOurs, ValueError)):
        program.from_configuration(path)


@pytest.fixture
def real(tmp_path):
    """A program called haproxy that shows its arguments, and the PATH on which it stands behind ours."""
    ours, theirs = tmp_path / 'ours', tmp_path / 'theirs'
    ours.mkdir()
    theirs.mkdir()
    (ours / 'haproxy').symlink_to(PROGRAM)
    (theirs / 'haproxy').write_text('#!/bin/sh\necho "real $*"\n')
    (theirs / 'haproxy').chmod(0o755)
    return f'{ours}:{theirs}:{os.environ["PATH"]}'


def started(path, *argv):
    return subprocess.run(['haproxy', *argv], env={'PATH': path}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize('argv', [['-v'], ['-c', '-f', '/etc/haproxy/haproxy.cfg'], ['-Ws', '-f', 'x'], []])
def test_other_arguments_start_the_real_haproxy(real, argv):
    done = started(real, *argv)
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        f'real {" ".join(argv)}'.rstrip() + ' ' * (not argv) + '\n',
        '',
    )


def test_without_a_keeper_the_real_haproxy_is_started_and_the_reason_named(real, tmp_path):
    path = written(tmp_path, TOP + LISTEN, binds=f'bind 127.0.0.1:{free_port()}', headers=ROUTER)
    done = started(real, '-f', path)
    assert (done.returncode, done.stdout) == (0, f'real -f {path}\n')
    assert 'the real haproxy is started: no keeper listens at ' in done.stderr
    assert not (tmp_path / 'external').exists()


def test_give_back_does_not_take_the_link_on_path_for_the_real_haproxy(real, tmp_path, monkeypatch):
    """``metadata-wsgi give-back`` loads the program; then ``sys.argv[0]`` is another program."""
    monkeypatch.setenv('PATH', real)
    assert next(loaded().programs()) == str(tmp_path / 'theirs' / 'haproxy')


def test_a_copy_of_this_program_is_not_taken_for_the_real_haproxy(real, tmp_path, monkeypatch):
    (tmp_path / 'ours' / 'haproxy').unlink()
    shutil.copy(PROGRAM, tmp_path / 'ours' / 'haproxy')
    monkeypatch.setenv('PATH', real)
    assert loaded().real_haproxy() == str(tmp_path / 'theirs' / 'haproxy')


def test_the_haproxy_of_the_settings_is_the_real_one(real, tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', real)
    (tmp_path / 'haproxy.conf').write_text('# Zugriff für root\nhaproxy = /opt/haproxy\n', encoding='latin-1')
    monkeypatch.setattr(program, 'SETTINGS', str(tmp_path / 'haproxy.conf'))
    assert program.real_haproxy() == '/opt/haproxy'


def test_a_setting_haproxy_that_names_this_program_starts_no_endless_loop(real, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('PATH', real)
    (tmp_path / 'haproxy.conf').write_text(f'haproxy = {tmp_path}/ours/haproxy\n')
    monkeypatch.setattr(program, 'SETTINGS', str(tmp_path / 'haproxy.conf'))
    assert program.real_haproxy() == str(tmp_path / 'theirs' / 'haproxy')
    assert f'{tmp_path}/ours/haproxy is metadata-wsgi-haproxy' in capsys.readouterr().err


@pytest.fixture
def keeper(tmp_path, monkeypatch):
    """A client of a running keeper, which has a socket of the router and no worker; and the socket's address.

    It sends no requests to holders: on a busy machine the first round came during a test.
    """
    monkeypatch.setattr(holders, 'REQUEST_INTERVAL_S', 3600.0)
    namespaces = LoopbackNamespaces()
    namespaces.make('a')
    running = RunningKeeper(str(tmp_path), namespaces, None)
    try:
        with admin_client.connect(str(tmp_path)) as client:
            client.register(Listener('shared', 'a', 9697, router_id=ID, host=namespaces.address('a')))
            yield client, namespaces.address('a')
    finally:
        running.kill()


@pytest.fixture
def executed(keeper, monkeypatch):
    """Each real haproxy that is started, with the listeners that the keeper has at that time."""
    monkeypatch.setattr(program, 'WORKER_TIMEOUT_S', 2 * program.POLL_S)
    monkeypatch.setattr(program, 'KEEPER_TIMEOUT_BEFORE_HAPROXY_S', 60.0)
    found = []
    monkeypatch.setattr(program.os, 'execv', lambda path, argv: found.append((path, keeper[0].list()[0])))
    return found


def test_the_keeper_closes_its_sockets_before_the_real_haproxy_is_started(
    real, keeper, executed, tmp_path, monkeypatch
):
    """With SO_REUSEPORT both would listen, and no worker accepts on the socket of the keeper."""
    monkeypatch.setenv('PATH', real)
    run_main('-f', written(tmp_path, TOP + LISTEN, binds=f'bind {keeper[1]}:9697', headers=ROUTER))
    assert executed == [(str(tmp_path / 'theirs' / 'haproxy'), [])]


def test_the_keeper_keeps_its_sockets_if_there_is_no_real_haproxy(keeper, executed, tmp_path, monkeypatch):
    monkeypatch.setattr(program, 'programs', lambda: iter(()))
    run_main('-f', written(tmp_path, TOP + LISTEN, binds=f'bind {keeper[1]}:9697', headers=ROUTER))
    assert (executed, len(keeper[0].list()[0])) == ([], 1)


@pytest.mark.parametrize('argv', [['-v'], ['-f', '/etc/haproxy/haproxy.cfg']])
def test_a_call_that_is_not_of_an_agent_closes_no_socket_of_the_keeper(keeper, executed, argv):
    run_main(*argv)
    assert [len(listeners) for _, listeners in executed] == [1]


class HolderOfA:
    """What the program needs as the holder of the router calls it: the FIFO and the socket. ``spec`` are arguments."""

    def __init__(self, keeper, tmp_path, monkeypatch):
        self.keeper, host = keeper
        self.spec = [str(tmp_path), 'router', ID, f'{tmp_path}/{ID}.pid', '9697', host]
        spec = program.Spec(*self.spec[:5], [host])
        self.fifo = program.make_fifo(spec)
        with sockets_left_to_the_kernel():
            self.listening = program.Keeper(spec).get(spec, host)
        self.keeper.unregister_all(ID)
        assert self.line() == b'end\n'
        monkeypatch.setattr(program, 'FIFO_FD', self.fifo)
        monkeypatch.setenv(program.FDS, str(self.listening.fileno()))
        monkeypatch.setattr(program, 'namespace', lambda: 'a')

    def again(self):
        """Run ``--again``, which takes a copy of the socket, as it is a process of its own."""
        with socket.socket(fileno=os.dup(self.listening.fileno())) as copy:
            os.environ[program.FDS] = str(copy.fileno())
            code = run_main('--again', *self.spec)
            copy.detach()
        return code

    def write(self, lines):
        os.write(self.fifo, lines)

    def line(self):
        return os.read(self.fifo, 100) if select.select([self.fifo], [], [], 0)[0] else b''

    def registered(self):
        return [listener.id for listener in self.keeper.list()[0]]


@pytest.fixture
def holder(keeper, tmp_path, monkeypatch):
    made = HolderOfA(keeper, tmp_path, monkeypatch)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as worker:
        worker.connect(str(tmp_path / 'listeners'))
        protocol.send(worker, {'mode': 'shared'})
        protocol.send(worker, {'holds': None})
        yield made
    made.listening.close()
    os.close(made.fifo)


def test_again_registers_the_sockets_once_for_all_requests_in_the_fifo(holder):
    holder.write(b'again\n' * 50)
    assert (holder.again(), holder.registered(), holder.line()) == (0, [ID], b'')


def test_a_request_before_end_registers_nothing(holder):
    """The keeper has closed the sockets of this id meanwhile."""
    holder.write(b'again\nend\n')
    assert (holder.again(), holder.registered(), holder.line()) == (0, [], b'end\n')


@pytest.fixture
def detached_meanwhile(holder, monkeypatch):
    """The router is detached just before its holder registers it again."""
    attach = program.Keeper.attach

    def attach_after_a_detach(self, *args):
        holder.keeper.unregister_all(ID)
        attach(self, *args)

    monkeypatch.setattr(program.Keeper, 'attach', attach_after_a_detach)


def test_a_detach_while_the_sockets_are_registered_again_is_not_undone(holder, detached_meanwhile):
    assert (holder.again(), holder.registered()) == (0, [])
    assert holder.line().startswith(b'end\n')


def test_a_holder_of_a_detached_router_ends_also_if_the_keeper_has_ended_meanwhile(
    holder, detached_meanwhile, monkeypatch
):
    """Otherwise it registers the router again at the next keeper."""

    def no_keeper(spec):
        raise program.NotOurs('no keeper listens')

    monkeypatch.setattr(program, 'release', no_keeper)
    assert (holder.again(), holder.line()) == (1, b'end\n')


def test_again_ends_the_holder_if_its_namespace_has_no_name(holder, monkeypatch):
    def no_name():
        raise program.NoNamespaceName('deleted')

    monkeypatch.setattr(program, 'namespace', no_name)
    assert (holder.again(), holder.registered(), holder.line()) == (0, [], b'end\n')


def test_a_new_holder_is_not_ended_by_the_line_for_the_former_one(holder, tmp_path, monkeypatch):
    """The keeper still had the socket of a namespace that was deleted, and closes it before it gets the new one."""
    attach, started = program.Keeper.attach, []

    def attach_after_a_reconcile(self, *args):
        holder.keeper.unregister_all(ID)
        attach(self, *args)

    def start(spec, sockets, fifo_fd):
        started.append(program.read_fifo(fifo_fd))
        return 4711

    monkeypatch.setattr(program.Keeper, 'attach', attach_after_a_reconcile)
    monkeypatch.setattr(program, 'start_holder', start)
    with sockets_left_to_the_kernel():
        program.serve(program.Spec(*holder.spec[:5], holder.spec[5:]), [holder.listening])
    assert (started, holder.registered()) == ([[]], [ID])


def test_without_descriptors_the_real_haproxy_is_started(real, monkeypatch):
    """The message to syslog needs a descriptor."""
    monkeypatch.setenv('PATH', real)
    executed = []

    def no_descriptor(*args):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(program._socket, 'socket', no_descriptor)
    monkeypatch.setattr(program.os, 'execv', lambda path, argv: executed.append(argv[1:]))
    program.start_haproxy(['-f', 'x'], 'no keeper')
    assert executed == [['-f', 'x']]


def test_without_a_real_haproxy_it_fails(monkeypatch, capsys):
    monkeypatch.setattr(program, 'programs', lambda: iter(()))
    assert program.start_haproxy(['-v'], '') == 1
    assert 'no other program of this name is on PATH' in capsys.readouterr().err


def test_an_internal_verb_never_starts_haproxy(real, tmp_path):
    spec = [str(tmp_path), 'router', ID, str(tmp_path / f'{ID}.pid'), str(free_port()), '127.0.0.1']
    done = started(real, '--attach', *spec)
    assert (done.returncode, done.stdout) == (1, '')
    assert 'no keeper listens' in done.stderr


def test_a_pid_file_that_is_a_link_is_replaced_and_its_target_untouched(tmp_path):
    target = tmp_path / 'shadow'
    target.write_text('root')
    (tmp_path / 'pid').symlink_to(target)
    program.write_pid_file(str(tmp_path / 'pid'), 4711)
    assert ((tmp_path / 'pid').read_text(), target.read_text()) == ('4711\n', 'root')
    assert not (tmp_path / 'pid').is_symlink()


def test_a_pid_file_in_a_directory_behind_a_link_is_not_written(tmp_path):
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'pids').symlink_to(tmp_path / 'elsewhere')
    with pytest.raises(OSError, match='pids'):
        program.write_pid_file(str(tmp_path / 'pids' / 'x.pid'), 4711)
    assert not list((tmp_path / 'elsewhere').iterdir())


@pytest.mark.parametrize('mode', [0o777, 0o775])
def test_holders_in_a_directory_that_others_may_write_are_refused(tmp_path, mode):
    (tmp_path / 'holders').mkdir()
    (tmp_path / 'holders').chmod(mode)
    with pytest.raises(program.NotOurs, match='not a directory of root alone'):
        program.make_fifo(program.Spec(str(tmp_path), 'router', ID, f'/x/{ID}.pid', 9697, ['*']))


def test_holders_behind_a_link_are_refused(tmp_path):
    (tmp_path / 'elsewhere').mkdir(mode=0o700)
    (tmp_path / 'holders').symlink_to(tmp_path / 'elsewhere')
    with pytest.raises(OSError, match='holders'):
        program.make_fifo(program.Spec(str(tmp_path), 'router', ID, f'/x/{ID}.pid', 9697, ['*']))
