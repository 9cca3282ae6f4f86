# SPDX-License-Identifier: Apache-2.0
"""``metadata-wsgi check-config`` and ``show-pipeline``: check whether the agent would start, and show its pipeline.

``check-config`` reads the agent's configuration and loads the pipeline; with ``metadata_one_hop`` also the pipeline
``one_hop``. It checks that the lookup shows every instance to the agent, and that Nova checks signatures with the
same secret. If the agent's role is not allowed to see ports, Neutron returns an empty list and no error. So the check
has no result in a new cloud, where only the agent's own project has ports or networks. It has no result either for a
role that may see only a part of the ports. Then the exit code is 2 if there is no other problem. It is 2, too, if the
pipeline has the filter ``metrics`` and the user of the command cannot write to the directory of the metrics.

``show-pipeline`` prints the filters as a list, or draws the path of a request (``-f mermaid``, ``-f svg``).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from metadata_wsgi.cli import agent, findings, listing, option_registry, pipeline_drawing, verbs
from metadata_wsgi.cli.exit_codes import WELL
from metadata_wsgi.cli.findings import Finding
from metadata_wsgi.config import config_files, file_warnings, neutron_files
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import ConfigError, InstanceLookupError, MetadataError
from metadata_wsgi.keeper.protocol import ONE_HOP
from metadata_wsgi.lookup import protocol
from metadata_wsgi.metrics import sink
from metadata_wsgi.nova_proxy import probe as nova_probe
from metadata_wsgi.nova_proxy.upstream import UpstreamApp
from metadata_wsgi.pipeline import order, paste_loader

PROBE_TIMEOUT_S = 10.0
PART_WIDTH = 16
PIPELINE_COLUMNS = ('filter', 'reads', 'provides')
DRAWINGS = {'mermaid': pipeline_drawing.mermaid, 'svg': pipeline_drawing.svg}


def add_verbs(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verbs."""
    checks = verbs.add_parser(
        subparsers,
        'check-config',
        description="Reads the agent's configuration and loads its pipeline. Queries Neutron, to check that the "
        'credentials show the ports of every project. Sends requests to each host of Nova, to check that Nova has the '
        'same shared secret. The last line is "ok", or what to change. The command changes nothing and does not affect '
        'a running agent.',
    )
    add_configuration(checks)
    listing.add_arguments(checks, findings.COLUMNS)
    checks.set_defaults(run=check_config)
    shows = verbs.add_parser(
        subparsers,
        'show-pipeline',
        description='Loads the pipeline as the agent does, and prints its filters in the order in which a request '
        'passes them. With -f mermaid or -f svg it draws the path of a request from two instances with the same '
        'address to Nova.',
    )
    add_configuration(shows)
    listing.add_arguments(shows, PIPELINE_COLUMNS, *DRAWINGS)
    shows.set_defaults(run=show_pipeline)


def add_configuration(parser: argparse.ArgumentParser) -> None:
    """Declare the options that select the configuration. All verbs that read the configuration have these options."""
    neutron_files.add_arguments(parser)
    parser.add_argument(
        '--paste-file', help='paste file (default: metadata_paste_config, else the paste file of the package)'
    )
    parser.add_argument('--pipeline', default='agent', help='section of the paste file (default: %(default)s)')


def load(args: argparse.Namespace, pipeline: str = '') -> tuple[str, Any]:
    """Return the path of the paste file and the application that ``args`` select. Disables the metrics.

    ``pipeline`` replaces the pipeline that ``args`` select.
    """
    global_conf = neutron_files.global_conf_of(args)
    path = args.paste_file or agent.paste_file(global_conf)[0]
    app = paste_loader.load(path, pipeline or args.pipeline, global_conf, only_check=True)
    # Root may run this verb, and would create files in the directory of the workers' metrics.
    sink.disconnect()
    return path, app


def check_config(args: argparse.Namespace) -> int:
    """Print a line for each check as soon as it is done, then the problems. Returns the exit code."""
    is_text = listing.is_text(args)
    found = []
    for finding in _without_exception(checks(args)):
        found.append(finding)
        if is_text and finding.state == findings.WELL:
            findings.show(finding, PART_WIDTH)
    problems = [finding for finding in found if finding.state != findings.WELL]
    if not is_text:
        listing.write(args, findings.to_listing(found), sys.stdout)
    elif problems:
        print('; '.join(finding.text for finding in problems), file=sys.stderr)
    else:
        print('ok')
    return findings.exit_code(found)


def _without_exception(found: Iterator[Finding]) -> Iterator[Finding]:
    """The findings. If a MetadataError prevents further checks, the last finding has its text."""
    try:
        yield from found
    except MetadataError as error:
        yield Finding('start', findings.NOT_WELL, str(error))


def checks(args: argparse.Namespace) -> Iterator[Finding]:
    """A finding for each check. Raises ConfigError if the agent would not start."""
    with config_files.parsed_once():
        global_conf = neutron_files.global_conf_of(args)
        files = config_files.files(global_conf)
        yield Finding('configuration', findings.WELL, ', '.join(files) or 'no file: defaults only')
        for group, group_opts in option_registry.list_opts():
            config_files.load(global_conf, [opt for opt in group_opts if not opt.required], group)
        for hint in (*file_warnings.misspelt(files, option_registry.list_opts()), agent.paste_file(global_conf)[1]):
            if hint:
                yield Finding('note', findings.WELL, hint)
        path, app = load(args)
        apps = [app, *_one_hop(args, global_conf)]
    yield Finding('paste file', findings.WELL, path)
    for one in apps:
        names = ' '.join(map(order.name, order.chain(one)))
        yield Finding('pipeline', findings.WELL, f'{names}: every filter has what it requires')
    if missing := _missing_in_one_hop(apps):
        text = f'mode one_hop is served without filters that the pipeline {args.pipeline} has: {missing}'
        yield Finding('note', findings.WELL, text)
    agent.check_metrics(global_conf, app)
    links = order.chain(app)
    yield from _metrics(global_conf, links)
    for sentence in file_warnings.world_readable_secrets(files, option_registry.list_opts()):
        yield Finding('secrets', findings.NOT_WELL, sentence)
    # The filters lookup_cache and instance may each have a lookup. Both are made from the same options.
    lookup: object = next(filter(None, map(protocol.lookup_of, links)), None)
    if credentials := getattr(lookup, 'credentials', ''):
        yield Finding('credentials', findings.WELL, credentials)
    if isinstance(lookup, protocol.ChecksVisibility):
        yield _probe(lookup)
    nova_problems = nova_probe.check(app)
    for sentence in nova_problems:
        yield Finding('Nova', findings.NOT_WELL, sentence)
    if not nova_problems and isinstance(links[-1], UpstreamApp):
        yield Finding('Nova', findings.WELL, 'checks signatures and has the same shared secret')


def _one_hop(args: argparse.Namespace, global_conf: Mapping[str, str]) -> Iterator[Any]:
    """The pipeline one_hop, if the agent also loads this pipeline."""
    if args.pipeline == ONE_HOP or not config_files.load(global_conf, agent.OPTS).metadata_one_hop:
        return
    try:
        yield load(args, ONE_HOP)[1]
    except ConfigError as error:
        raise ConfigError(f'metadata_one_hop is set, and the pipeline one_hop does not load: {error}') from error


def _missing_in_one_hop(apps: list[Any]) -> str:
    """The filters that only the first of two pipelines has, without those that read or check the proxy's headers."""
    names = [[order.name(link) for link in order.chain(app)] for app in apps]
    return ', '.join(name for name in names[0] if name not in (*names[-1], 'peer_credentials', 'header_source'))


def _metrics(global_conf: Mapping[str, str], links: Iterable[Any]) -> Iterator[Finding]:
    """Whether the agent can count, if the pipeline has the filter ``metrics``."""
    # Imported only here, because not every pipeline needs it.
    from metadata_wsgi.filters.optional import metrics

    if not any(isinstance(link, metrics.MetricsFilter) for link in links):
        return
    try:
        metrics.check_directory(global_conf)
    except ConfigError as error:
        if os.geteuid() == 0:
            yield Finding('metrics', findings.NOT_WELL, f'metrics: {error}')
            return
        yield Finding(
            'metrics',
            findings.UNKNOWN,
            f'metrics: cannot tell whether the agent can count: {error}. Run the command as root, or as the user that '
            'starts the agent',
        )
    else:
        yield Finding('metrics', findings.WELL, 'the agent can write the counts')


def _probe(lookup: protocol.ChecksVisibility) -> Finding:
    """Whether the lookup directory shows the instances of every project."""
    try:
        result = lookup.probe(Deadline.after(PROBE_TIMEOUT_S))
    except InstanceLookupError as error:
        return Finding('directory', findings.NOT_WELL, f'directory: {error}')
    if not getattr(result, 'is_likely', True):
        text = f'directory: cannot tell whether the agent sees every instance: {result}'
        return Finding('directory', findings.UNKNOWN, text)
    return Finding('directory', findings.WELL, str(result))


def show_pipeline(args: argparse.Namespace) -> int:
    """Print or draw each filter in order."""
    try:
        path, app = load(args)
    except ConfigError as error:
        # Exit code 1 and not 2: the verb has found that the pipeline does not load.
        raise MetadataError(str(error)) from error
    links = order.chain(app)
    rows: list[tuple[listing.Cell, ...]] = [
        (order.name(link), _sorted(link, 'REQUIRES'), _sorted(link, 'PROVIDES')) for link in links
    ]
    if args.format in DRAWINGS:
        sys.stdout.write(DRAWINGS[args.format](links))
    elif not listing.is_text(args):
        listing.write(args, listing.Listing(PIPELINE_COLUMNS, rows), sys.stdout)
    else:
        print(f'{args.pipeline} of {path}')
        for name, reads, provides in rows:
            print(f'  {name:<20} reads {_joined(reads):<52} provides {_joined(provides)}')
    return WELL


def _sorted(link: Any, attribute: str) -> tuple[str, ...]:
    return tuple(sorted(getattr(link, attribute, ())))


def _joined(keys: listing.Cell) -> str:
    return (', '.join(keys) if isinstance(keys, tuple) else '') or '-'
