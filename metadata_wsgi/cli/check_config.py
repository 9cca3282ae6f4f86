# SPDX-License-Identifier: Apache-2.0
"""``metadata-wsgi check-config`` and ``show-pipeline``: check whether the agent would start, and show its pipeline.

``check-config`` reads the agent's configuration and loads the pipeline. It checks that the lookup directory shows every
instance to the agent, and that Nova checks signatures with the same secret. If the agent's role may see no ports,
Neutron returns an empty list for every query: the same response as for an address that no instance has.
"""

from __future__ import annotations

import argparse
from typing import Any

from metadata_wsgi.cli import agent, neutron_agent, option_registry
from metadata_wsgi.config import config_files, file_warnings
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import ConfigError, InstanceLookupError
from metadata_wsgi.lookup import protocol
from metadata_wsgi.nova_proxy import probe as nova_probe
from metadata_wsgi.nova_proxy.upstream import UpstreamApp
from metadata_wsgi.pipeline import order, paste_loader

PROBE_TIMEOUT_S = 10.0


def add_verbs(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verbs."""
    for verb, text, run in (
        ('check-config', 'check the configuration and print what is wrong with it', check_config),
        ('show-pipeline', 'print the filters of the pipeline and what each reads and provides', show_pipeline),
    ):
        parser = subparsers.add_parser(verb, help=text)
        add_configuration(parser)
        parser.set_defaults(run=run)


def add_configuration(parser: argparse.ArgumentParser) -> None:
    """Declare the options that select the configuration. All verbs that read the configuration have these options."""
    config_files.add_arguments(parser, help=' (default: as the agent)')
    parser.add_argument(
        '--neutron',
        action='store_true',
        help=f'read the defaults of {neutron_agent.PROGRAM} before the configuration files',
    )
    parser.add_argument(
        '--paste-file', help='paste file (default: metadata_paste_config, else the paste file of the package)'
    )
    parser.add_argument('--pipeline', default='agent', help='section of the paste file (default: %(default)s)')


def global_conf_of(args: argparse.Namespace) -> dict[str, str]:
    """The ``global_conf`` of the program whose configuration ``args`` select."""
    return (neutron_agent.configuration if args.neutron else config_files.to_global_conf)(args.config_file)


def load(args: argparse.Namespace) -> tuple[str, Any]:
    """Return the path of the paste file and the application that ``args`` select."""
    global_conf = global_conf_of(args)
    path = args.paste_file or agent.paste_file(global_conf)[0]
    return path, paste_loader.load(path, args.pipeline, global_conf)


def check_config(args: argparse.Namespace) -> int:
    """Print a line for each check. Raises ConfigError if a check failed."""
    with config_files.parsed_once():
        global_conf = global_conf_of(args)
        files = config_files.files(global_conf)
        print(f'configuration   {", ".join(files) or "no file: defaults only"}')
        for group, group_opts in option_registry.list_opts():
            config_files.load(global_conf, [opt for opt in group_opts if not opt.required], group)
        for hint in (*file_warnings.misspelt(files, option_registry.list_opts()), agent.paste_file(global_conf)[1]):
            if hint:
                print(f'note            {hint}')
        path, app = load(args)
    print(f'paste file      {path}')
    links = order.chain(app)
    print(f'pipeline        {" ".join(order.name(link) for link in links)}: every filter has what it requires')
    problems = file_warnings.world_readable_secrets(files, option_registry.list_opts())
    # Two filters may have a lookup, lookup_cache and instance; both use the same lookup object.
    lookup: object = next(filter(None, map(protocol.lookup_of, links)), None)
    if credentials := getattr(lookup, 'credentials', ''):
        print(f'credentials     {credentials}')
    if isinstance(lookup, protocol.ChecksVisibility) and (problem := _probe(lookup)):
        problems.append(problem)
    nova_problems = nova_probe.check(app)
    if not nova_problems and isinstance(links[-1], UpstreamApp):
        print('Nova            checks signatures and has the same shared secret')
    problems += nova_problems
    if problems:
        raise ConfigError('; '.join(problems))
    print('ok')
    return 0


def show_pipeline(args: argparse.Namespace) -> int:
    """Print each filter in order, what it reads and what it provides."""
    path, app = load(args)
    print(f'{args.pipeline} of {path}')
    for link in order.chain(app):
        reads = ', '.join(sorted(getattr(link, 'REQUIRES', ()))) or '-'
        provides = ', '.join(sorted(getattr(link, 'PROVIDES', ()))) or '-'
        print(f'  {order.name(link):<20} reads {reads:<52} provides {provides}')
    return 0


def _probe(lookup: protocol.ChecksVisibility) -> str:
    """Check that the lookup directory shows the ports of all projects. Returns the problem, or ''."""
    try:
        result = lookup.probe(Deadline.after(PROBE_TIMEOUT_S))
    except InstanceLookupError as error:
        return f'directory: {error}'
    if not getattr(result, 'is_proven', True):
        return f'directory: {result}'
    print(f'directory       {result}')
    return ''
