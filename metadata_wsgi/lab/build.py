# SPDX-License-Identifier: Apache-2.0
"""Builds the lab step by step, prints each step, and removes the lab."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.lab import guests, plan, topology
from metadata_wsgi.netns.attach import Attacher
from metadata_wsgi.netns.proxy_command import ProxyCommand
from metadata_wsgi.netns.runner import SubprocessRunner
from metadata_wsgi.netns.target import NETWORK, ROUTER, AttachTarget

Report = Callable[[str], None]
"""Prints one line of progress."""


def up(paste_file: str, report: Report) -> list[tuple[plan.Guest, guests.Received]]:
    """Build the lab. Returns the identity that each instance receives. Removes the remains of an earlier lab first."""
    if topology.remove():
        report('An earlier lab still existed: removed')
    _write_files()
    report(f'Host      namespace {plan.HOST_NAMESPACE}: represents the host, and has no connection to your network')
    topology.make_host()
    for guest in plan.GUESTS:
        kind = f'router {guest.router_id}' if guest.routed else f'isolated network {guest.network_id}'
        report(f'Guest     {guest.namespace} of tenant {guest.tenant} at {plan.ADDRESS}, {kind}')
        topology.make_guest(guest)
    report("Nova      replaced by the pipeline 'nova' of the paste file, on 127.0.0.1:8775 of the host")
    _start('nova', _nova(paste_file))
    report(f"Agent     quantum-metadata-agent, the pipeline 'agent', on {plan.STATE_PATH}/metadata_proxy")
    _start('agent', [program('quantum-metadata-agent'), '--config-file', f'{plan.STATE_PATH}/metadata_agent.ini'])
    _wait_for(f'{plan.STATE_PATH}/metadata_proxy', 'agent')
    attacher = _attacher()
    for guest in plan.GUESTS:
        report(f'Attach    {guest.gateway_namespace}: rules and namespace proxy')
        attacher.attach(_target(guest))
    report(f'Request   curl {guests.URL}/... inside each instance')
    return [(guest, guests.request_identity(guest)) for guest in plan.GUESTS]


def down(report: Report) -> None:
    """Remove all processes, namespaces and files of the lab."""
    count = topology.remove()
    exists = os.path.isdir(plan.STATE_PATH)
    shutil.rmtree(plan.STATE_PATH, ignore_errors=True)
    report(
        f'Removed {count} namespaces, the processes in them, and {plan.STATE_PATH}'
        if count or exists
        else 'No lab is up'
    )


def program(name: str) -> str:
    """The path of a program of this package: in the directory of the Python interpreter, else on PATH."""
    beside = os.path.dirname(sys.executable)
    path = shutil.which(name, path=os.pathsep.join([beside, os.environ.get('PATH', os.defpath)]))
    if path is None:
        raise NetnsError(f'{name} is not installed beside {sys.executable} and not on PATH: install the package')
    return path


def _write_files() -> None:
    shutil.rmtree(plan.STATE_PATH, ignore_errors=True)
    os.makedirs(f'{plan.STATE_PATH}/passwords', mode=0o755)
    for name, text in (
        ('inventory.yaml', plan.inventory()),
        ('metadata_agent.ini', plan.options(secrets.token_hex(16))),
    ):
        handle = os.open(f'{plan.STATE_PATH}/{name}', os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, 'w') as file:
            file.write(text)


def _attacher() -> Attacher:
    proxy = ProxyCommand(
        program=program('quantum-ns-metadata-proxy'),
        state_path=plan.STATE_PATH,
        socket=f'{plan.STATE_PATH}/metadata_proxy',
        log_dir=plan.STATE_PATH,
    )
    return Attacher(SubprocessRunner(), proxy=proxy)


def _target(guest: plan.Guest) -> AttachTarget:
    return AttachTarget.of(ROUTER, guest.router_id) if guest.router_id else AttachTarget.of(NETWORK, guest.network_id)


def _nova(paste_file: str) -> list[str]:
    return [
        *(program('gunicorn'), '--paste', f'{paste_file}#nova', '--worker-class', 'gevent'),
        *('--paste-global', f'config_file={plan.STATE_PATH}/metadata_agent.ini'),
        *('--bind', '127.0.0.1:8775', '--no-control-socket'),
    ]


def _start(name: str, argv: Sequence[str]) -> None:
    """Run ``argv`` in the background, in the host's namespace. Its output goes to a file in the state directory."""
    with open(_log(name), 'ab') as log:
        subprocess.Popen(
            ['ip', 'netns', 'exec', plan.HOST_NAMESPACE, *argv],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd='/',
            start_new_session=True,
        )


def _log(name: str) -> str:
    return f'{plan.STATE_PATH}/{name}.log'


def _wait_for(path: str, name: str, timeout_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not os.path.exists(path):
        if time.monotonic() > deadline_s:
            output = ''
            with suppress(OSError), open(_log(name)) as log:
                output = log.read()[-2000:]
            raise NetnsError(f'the {name} did not start within {timeout_s:.0f} s; its output:\n{output}')
        time.sleep(0.05)
