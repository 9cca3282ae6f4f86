# SPDX-License-Identifier: Apache-2.0
"""``metadata-wsgi adopt`` takes over the sockets of a Neutron node's haproxies. ``give-back`` starts haproxy again."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from metadata_wsgi.cli import root_check, verbs
from metadata_wsgi.cli.exit_codes import NOT_WELL, WELL
from metadata_wsgi.cli.terminal import Progress
from metadata_wsgi.errors import MetadataError
from metadata_wsgi.keeper import admin_client
from metadata_wsgi.netns import haproxy

NEUTRON_STATE_PATH = '/var/lib/neutron'


def add_verbs(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verbs."""
    adopt = verbs.add_parser(
        subparsers,
        'adopt',
        description='Takes over the listening sockets of the haproxies that Neutron agents started on this host, and '
        'ends these haproxies. The keeper and its workers must run. On the PATH of the Neutron agents, '
        'metadata-wsgi-haproxy must have the name haproxy. Otherwise an agent that is restarted starts haproxy '
        'again. The command give-back reverses adopt.',
    )
    give_back = verbs.add_parser(
        subparsers,
        'give-back',
        description="Starts haproxy again, with Neutron's configuration. When haproxy listens, the keeper closes its "
        'own sockets. So no connection is refused.',
    )
    for parser, convert in ((adopt, _adopt), (give_back, _give_back)):
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument('--all', action='store_true', help='every router and network of this host')
        which.add_argument('--id', action='append', default=[], help='a router or network; may be repeated')
        parser.add_argument(
            '--state-path', default=NEUTRON_STATE_PATH, help="Neutron's state_path (default: %(default)s)"
        )
        parser.set_defaults(run=run, convert=convert)


def run(args: argparse.Namespace) -> int:
    """Adopt or give back each proxy. Returns exit code 1 if one of them fails, or if no proxy of a given id runs."""
    root_check.require_root()
    proxies = [proxy for proxy in haproxy.running(args.state_path) if args.all or proxy.id in args.id]
    missing = sorted(set(args.id) - {proxy.id for proxy in proxies})
    for id_ in missing:
        print(f'{id_}: no metadata proxy of Neutron runs for it', file=sys.stderr)
    conversion = haproxy.Conversion(args.state_path, haproxy.default_program())
    changed, failed = 0, []
    with Progress('Proxies:', len(proxies)) as progress:
        for proxy in proxies:
            try:
                changed += args.convert(conversion, proxy, args.state_path)
            except (MetadataError, OSError) as error:
                failed.append(proxy.id)
                print(f'{proxy.id}: {error}', file=sys.stderr)
            progress.step()
    print(f'{changed} converted, {len(proxies) - changed - len(failed)} already converted, {len(failed)} failed')
    return NOT_WELL if failed or missing else WELL


def _adopt(conversion: haproxy.Conversion, proxy: haproxy.Proxy, state_path: str) -> bool:
    return conversion.adopt(proxy)


def _give_back(conversion: haproxy.Conversion, proxy: haproxy.Proxy, state_path: str) -> bool:
    return conversion.give_back(proxy, _detach(state_path))


def _detach(state_path: str) -> Callable[[str], bool]:
    def detach(id_: str) -> bool:
        with admin_client.connect(state_path) as keeper:
            return keeper.unregister_all(id_)

    return detach
