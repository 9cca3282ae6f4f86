# SPDX-License-Identifier: Apache-2.0
"""``metadata-wsgi healthcheck``: liveness and readiness of the agent or the keeper, for a probe or a monitor.

The command sends a request to the agent's unix socket (the filter ``healthcheck``), or to the keeper's socket for root.
The exit code is 0 if the program is alive and ready, else 1. Neutron and Nova get no request.
"""

from __future__ import annotations

import argparse
import http.client
import os
import socket

from metadata_wsgi.cli import verbs
from metadata_wsgi.config import config_files, neutron_files, state_paths
from metadata_wsgi.errors import MetadataError
from metadata_wsgi.keeper import admin_client
from metadata_wsgi.netns.target import NO_WORKER

RESPONSE_TIMEOUT_S = 5.0
PATH = '/healthcheck'


def add_verb(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        subparsers,
        'healthcheck',
        description='Checks whether the agent or the keeper is alive and ready, and prints the reasons if not. '
        'The exit code is 0 if it is, else 1. Sends no request to Neutron or Nova.',
    )
    parser.add_argument('program', nargs='?', choices=['agent', 'keeper'], default='agent', help='default: agent')
    parser.add_argument(
        '--live', action='store_true', help='check liveness only: whether the program responds, even if it is not ready'
    )
    neutron_files.add_arguments(parser)
    parser.add_argument('--state-path', help='directory of the sockets')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the result with the reasons. Returns the exit code: 1 if something is wrong, else 0."""
    conf = config_files.load(neutron_files.global_conf_of(args), state_paths.OPTS)
    if args.state_path:
        conf.set_override('state_path', os.path.abspath(args.state_path))
    is_ok, text = (
        keeper(conf.state_path, live=args.live)
        if args.program == 'keeper'
        else agent(conf.metadata_proxy_socket, live=args.live)
    )
    print(text)
    return 0 if is_ok else 1


def agent(path: str, *, live: bool) -> tuple[bool, str]:
    """Whether the agent on the socket ``path`` is ready (with ``live``: alive), and the text of its response."""
    try:
        status, text = get(path, PATH + ('/live' if live else ''))
    except (OSError, http.client.HTTPException) as error:
        return False, f'no response at {path}: {str(error) or type(error).__name__}'
    if status == 400:
        # Without the filter healthcheck the agent responds 400, because the headers of a namespace proxy are missing.
        return True, 'OK\nthe filter healthcheck is not in its pipeline; it responds'
    return status == 200, text.rstrip()


def keeper(state_path: str, *, live: bool) -> tuple[bool, str]:
    """Whether the keeper of ``state_path`` responds; without ``live`` also whether workers serve its sockets."""
    try:
        with admin_client.connect(state_path) as client:
            listeners, workers = client.list()
    except MetadataError as error:
        return False, str(error)
    details = f'{len(listeners)} listeners; workers: ' + (
        ', '.join(f'{count} in mode {mode}' for mode, count in sorted(workers.items())) or 'none'
    )
    problems = sorted({NO_WORKER[one.mode] for one in listeners if not workers.get(one.mode)})
    if live or not problems:
        return True, f'OK\n{details}'
    return False, '\n'.join([*problems, details])


def get(path: str, target: str) -> tuple[int, str]:
    """Send GET ``target`` to the unix socket ``path``. Returns status and text of the response."""
    connection = http.client.HTTPConnection('agent', timeout=RESPONSE_TIMEOUT_S)
    with socket.socket(socket.AF_UNIX) as unix_socket:
        unix_socket.settimeout(RESPONSE_TIMEOUT_S)
        unix_socket.connect(path)
        connection.sock = unix_socket
        connection.request('GET', target)
        response = connection.getresponse()
        return response.status, response.read().decode(errors='replace')
