# SPDX-License-Identifier: Apache-2.0
"""``metadata-wsgi lab``: a cloud on one machine. Three instances have the same address and get different metadata."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence

from metadata_wsgi.cli import verbs
from metadata_wsgi.errors import NetnsError
from metadata_wsgi.lab import build, guests, plan, unprivileged
from metadata_wsgi.pipeline import paste_loader

PROGRAMS = {'ip': 'iproute2', 'iptables': 'iptables', 'curl': 'curl'}


def add_verb(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        subparsers,
        'lab',
        description='A cloud on one machine, without OpenStack: two tenants whose networks use the same addresses, and '
        'an isolated network, each with an instance in a namespace of its own. Starts the agent with a YAML file in '
        'place of Neutron and Nova, attaches routers and network, and prints what each instance receives. Removes '
        'everything at the end, unless --keep is given. Without root it runs in a user namespace, if the kernel allows '
        'this.',
    )
    parser.add_argument(
        'action', nargs='?', choices=['up', 'down'], default='up', help='build the lab (default), or remove it'
    )
    parser.add_argument('--keep', action='store_true', help='keep the lab; "lab down" removes it')
    parser.add_argument('--paste-file', help='use this paste file instead of the default one')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Build the lab, print the metadata of each instance, and remove the lab unless --keep is given."""
    if args.action == 'down':
        return _down()
    if missing := [f'{name} (package {package})' for name, package in PROGRAMS.items() if not shutil.which(name)]:
        raise NetnsError(f'the lab needs {", ".join(missing)}: install what is missing')
    if unprivileged.needed():
        return _run_unprivileged(args)
    try:
        received = build.up(os.path.abspath(args.paste_file or paste_loader.default_paste_file()), _print)
        _table(received)
        if not all(guest.instance_id == identity.instance_id for guest, identity in received):
            raise NetnsError('an instance received the id of another one')
    except BaseException:
        if not args.keep:
            build.down(_print)
        raise
    if not args.keep:
        build.down(_print)
    elif not os.environ.get(unprivileged.INSIDE):
        _print_usage('')
    return 0


def _run_unprivileged(args: argparse.Namespace) -> int:
    if args.keep and unprivileged.kept_pid():
        unprivileged.down()
    again = [sys.executable, '-m', 'metadata_wsgi.cli.main', 'lab', 'up']
    again += ['--keep'] if args.keep else []
    again += ['--paste-file', os.path.abspath(args.paste_file)] if args.paste_file else []
    _print('Without root: in a user namespace')
    code = unprivileged.run(again, keep=args.keep)
    if args.keep and code == 0 and (pid := unprivileged.kept_pid()):
        _print_usage(unprivileged.enter(pid))
    return code


def _down() -> int:
    if unprivileged.needed():
        _print('Removed the lab' if unprivileged.down() else 'No lab is up')
    else:
        build.down(_print)
    return 0


def _table(received: Sequence[tuple[plan.Guest, guests.Received]]) -> None:
    rows = [('guest', 'tenant', 'router or network', 'address', 'instance id it received', 'hostname it received')]
    for guest, identity in received:
        where = f'router {guest.router_id}' if guest.routed else f'network {guest.network_id}'
        rows.append((guest.name, guest.tenant, where, plan.ADDRESS, identity.instance_id, identity.hostname))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    print()
    for row in rows:
        print('  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print()


def _print_usage(prefix: str) -> None:
    print(f'A shell in a guest:  {prefix}ip netns exec {plan.GUESTS[0].namespace} bash')
    print(f'There, for example:  curl {guests.URL}/openstack/latest/meta_data.json')
    guest = plan.GUESTS[0]
    # The command runs in the namespace of the lab's host: only there 127.0.0.1:8775 is the lab's Nova.
    print(
        f'Trace its request:   {prefix}ip netns exec {plan.HOST_NAMESPACE} {build.program("metadata-wsgi")} explain '
        f'--config-file {plan.STATE_PATH}/metadata_agent.ini --router-id {guest.router_id} {plan.ADDRESS} --send'
    )
    print('Remove all of it:    metadata-wsgi lab down')


def _print(text: str) -> None:
    print(text, flush=True)
