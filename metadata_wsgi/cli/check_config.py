# SPDX-License-Identifier: Apache-2.0
"""``metadata-wsgi check-config`` and ``show-pipeline``: would the agent start, and what would it serve?

``check-config`` reads what the agent reads, builds the pipeline, and asks the directory whether it lets
us see what we must see: a role in Quantum that may see nothing answers every query with an empty
list, which looks like "no such instance" for every guest.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from metadata_wsgi.cli import agent, option_registry
from metadata_wsgi.config import config_files
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import ConfigError, InstanceLookupError
from metadata_wsgi.lookup import protocol
from metadata_wsgi.pipeline import order, paste_loader

PROBE_S = 10.0


def add_verbs(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verbs."""
    for verb, text, run in (
        ('check-config', 'say what is wrong with the configuration, or that nothing is', check_config),
        ('show-pipeline', 'draw the pipeline that the paste file describes', show_pipeline),
    ):
        parser = subparsers.add_parser(verb, help=text)
        add_configuration(parser)
        parser.set_defaults(run=run)


def add_configuration(parser: argparse.ArgumentParser) -> None:
    """Declare what names the configuration, the same for every verb that reads it."""
    parser.add_argument(
        '--config-file', action='append', default=[], help='configuration file, may be repeated (default: as the agent)'
    )
    parser.add_argument('--paste-file', help='paste file (default: api_paste_config, else the shipped one)')
    parser.add_argument('--pipeline', default='agent', help='section of the paste file (default: %(default)s)')


def load(args: argparse.Namespace) -> tuple[str, Any]:
    """The paste file's path and the application that ``args`` name."""
    global_conf = {'config_file': ','.join(args.config_file)} if args.config_file else {}
    named = config_files.load(global_conf, agent.OPTS).api_paste_config
    path = args.paste_file or named or paste_loader.default_paste_file()
    return path, paste_loader.load(path, args.pipeline, global_conf)


def check_config(args: argparse.Namespace) -> int:
    """Print a line for each thing that was checked; 1 when one of them is wrong."""
    global_conf = {'config_file': ','.join(args.config_file)} if args.config_file else {}
    files = config_files.files(global_conf)
    print(f'configuration   {", ".join(files) or "no file: defaults only"}')
    for group, group_opts in option_registry.list_opts():
        config_files.load(global_conf, [opt for opt in group_opts if not opt.required], group)
    path, app = load(args)
    print(f'paste file      {path}')
    print(
        f'pipeline        {" ".join(order.name(link) for link in order.chain(app))}: every filter finds what it reads'
    )
    complaints = config_files.exposed(files, option_registry.list_opts())
    # Where several filters have a lookup it is of the same kind: lookup_cache and instance.
    probe = next(filter(None, map(protocol.probe_of, order.chain(app))), None)
    if probe and (complaint := _probe(probe)):
        complaints.append(complaint)
    if complaints:
        raise ConfigError('; '.join(complaints))
    print('ok')
    return 0


def show_pipeline(args: argparse.Namespace) -> int:
    """Print each filter in order, what it reads and what it establishes."""
    path, app = load(args)
    print(f'{args.pipeline} of {path}')
    for link in order.chain(app):
        reads = ', '.join(sorted(getattr(link, 'REQUIRES', ()))) or '-'
        establishes = ', '.join(sorted(getattr(link, 'PROVIDES', ()))) or '-'
        print(f'  {order.name(link):<20} reads {reads:<52} establishes {establishes}')
    return 0


def _probe(probe: Callable[[Deadline], object]) -> str:
    """Ask the directory of an ``instance`` filter whether it can see anything; the complaint, or ''."""
    try:
        print(f'directory       {probe(Deadline.after(PROBE_S))}')
    except InstanceLookupError as error:
        return f'directory: {error}'
    return ''
