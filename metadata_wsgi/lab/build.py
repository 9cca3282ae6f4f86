# SPDX-License-Identifier: Apache-2.0
"""Build the lab step by step, saying each step, and take it down again."""

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
from metadata_wsgi.netns.attach import Attachments, Proxy
from metadata_wsgi.netns.runner import SubprocessRunner
from metadata_wsgi.netns.target import NETWORK, ROUTER, Place

Say = Callable[[str], None]


def up(paste_file: str, say: Say) -> list[tuple[plan.Guest, guests.Received]]:
    """Build it, ask each guest who it is, and return what they heard. What an earlier lab left goes first."""
    if topology.remove():
        say('An earlier lab was still there: removed')
    _write_files()
    say(f'Host      namespace {plan.HOST_NAMESPACE}: stands for the host, nothing of it reaches your network')
    topology.make_host()
    for guest in plan.GUESTS:
        kind = f'router {guest.router_id}' if guest.routed else f'isolated network {guest.network_id}'
        say(f'Guest     {guest.namespace} of tenant {guest.tenant} at {plan.ADDRESS}, {kind}')
        topology.make_guest(guest)
    say("Nova      its stand-in, the pipeline 'nova' of the paste file, on 127.0.0.1:8775 of the host")
    _start('nova', _nova(paste_file))
    say(f"Agent     quantum-metadata-agent, the pipeline 'agent', on {plan.STATE_PATH}/metadata_proxy")
    _start('agent', [program('quantum-metadata-agent'), '--config-file', f'{plan.STATE_PATH}/metadata_agent.ini'])
    _wait_for(f'{plan.STATE_PATH}/metadata_proxy', 'agent')
    attachments = _attachments()
    for guest in plan.GUESTS:
        say(f'Attach    {guest.gateway_namespace}: rules and namespace proxy')
        attachments.attach(_place(guest))
    say(f'Ask       curl {guests.URL}/... inside each guest')
    return [(guest, guests.ask(guest)) for guest in plan.GUESTS]


def down(say: Say) -> None:
    """Remove every trace of it."""
    count = topology.remove()
    there = os.path.isdir(plan.STATE_PATH)
    shutil.rmtree(plan.STATE_PATH, ignore_errors=True)
    say(
        f'Removed {count} namespaces, the processes in them, and {plan.STATE_PATH}'
        if count or there
        else 'No lab is up'
    )


def program(name: str) -> str:
    """The path of one of our programs: beside this interpreter, else on PATH."""
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


def _attachments() -> Attachments:
    proxy = Proxy(
        program=program('quantum-ns-metadata-proxy'),
        state_path=plan.STATE_PATH,
        socket=f'{plan.STATE_PATH}/metadata_proxy',
        log_dir=plan.STATE_PATH,
    )
    return Attachments(SubprocessRunner(), proxy=proxy)


def _place(guest: plan.Guest) -> Place:
    return Place.of(ROUTER, guest.router_id) if guest.router_id else Place.of(NETWORK, guest.network_id)


def _nova(paste_file: str) -> list[str]:
    return [
        *(program('gunicorn'), '--paste', f'{paste_file}#nova', '--worker-class', 'gevent'),
        *('--paste-global', f'config_file={plan.STATE_PATH}/metadata_agent.ini'),
        *('--bind', '127.0.0.1:8775', '--no-control-socket'),
    ]


def _start(name: str, argv: Sequence[str]) -> None:
    """Run ``argv`` in the host's namespace, in the background; what it says goes to a file in the state directory."""
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


def _wait_for(path: str, name: str, patience_s: float = 30.0) -> None:
    give_up_at = time.monotonic() + patience_s
    while not os.path.exists(path):
        if time.monotonic() > give_up_at:
            said = ''
            with suppress(OSError), open(_log(name)) as log:
                said = log.read()[-2000:]
            raise NetnsError(f'the {name} did not start within {patience_s:.0f} s; it said:\n{said}')
        time.sleep(0.05)
