# SPDX-License-Identifier: Apache-2.0
"""Writes the man pages of the five programs: ``python -W ignore doc/man_pages.py DIRECTORY``.

They are made by argparse-manpage from the parsers that read the command lines. The date on them is that of
``SOURCE_DATE_EPOCH``, if it is set, so that a package can be built twice with the same result.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import sys
from importlib.metadata import version
from pathlib import Path

from argparse_manpage.manpage import Manpage
from oslo_config import cfg
from oslo_log import log

from metadata_wsgi.cli import agent, main, namespace_proxy, neutron_agent

SECTION = 8
HAPROXY_PROGRAM = Path(__file__).resolve().parents[1] / 'bin' / 'metadata-wsgi-haproxy'

SEE_ALSO = 'metadata-wsgi(8), quantum-metadata-agent(8), quantum-ns-metadata-proxy(8), metadata-wsgi-haproxy(8)'


def main_parser() -> argparse.ArgumentParser:
    """Of ``metadata-wsgi`` with all its verbs."""
    return main.make_parser()


def agent_parser(name: str, description: str) -> argparse.ArgumentParser:
    """Of the agent: oslo.config makes it from the options of oslo.log and its own."""
    conf = cfg.ConfigOpts()
    log.register_options(conf)
    conf(args=[], project='metadata_wsgi', prog=name, version=version('metadata_wsgi'), default_config_files=[],
         default_config_dirs=[], description=_plain(description))  # fmt: skip
    parser: argparse.ArgumentParser = conf._oparser
    return parser


def haproxy_parser() -> argparse.ArgumentParser:
    """Of ``metadata-wsgi-haproxy``, which has no parser of argparse: its docstring is its help."""
    docstring = ast.get_docstring(ast.parse(HAPROXY_PROGRAM.read_text())) or ''
    return argparse.ArgumentParser(
        prog='metadata-wsgi-haproxy',
        usage='haproxy -f CONFIGURATION',
        description=_plain(docstring),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )


def _plain(docstring: str) -> str:
    text = re.sub('``|::$', lambda match: ':' if match[0] == '::' else '', docstring, flags=re.MULTILINE)
    # argparse-manpage joins lines, also those of a list: each item and each line of a table becomes a paragraph.
    return re.sub(r'\n(?=[0-9]\. |    -)', '\n\n', re.sub(r'\n {3}(?=\w)', '\n', text))


def pages() -> dict[str, str]:
    """Name of the program: its man page."""
    return {
        'metadata-wsgi': _page(main_parser(), 'the commands that an operator of the metadata path runs by hand'),
        'quantum-metadata-agent': _page(
            agent_parser('quantum-metadata-agent', agent.__doc__ or ''), 'the agent of the metadata path'
        ),
        'neutron-metadata-agent-wsgi': _page(
            agent_parser('neutron-metadata-agent-wsgi', neutron_agent.__doc__ or ''),
            "the agent of the metadata path with the defaults of Neutron's metadata agent",
        ),
        'quantum-ns-metadata-proxy': _page(
            namespace_proxy.make_parser(),
            "the namespace proxy of the metadata path, for one router's or network's namespace",
        ),
        'metadata-wsgi-haproxy': _page(haproxy_parser(), 'takes the place of haproxy on the PATH of agents of Neutron'),
    }


def _page(parser: argparse.ArgumentParser, summary: str) -> str:
    data = {
        'project_name': 'metadata_wsgi',
        'version': version('metadata_wsgi'),
        'manual_section': SECTION,
        'manual_title': 'metadata_wsgi',
        'description': summary,
    }
    page = Manpage(parser, _data=data, format='single-commands-section')
    page.add_section('see also', '=', SEE_ALSO)
    return str(page)


def write(directory: Path) -> None:
    """Write all of them into ``directory``, which is made if it does not exist."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (directory / f'{name}.{SECTION}').write_text(text, encoding='utf-8')


if __name__ == '__main__':
    if len(sys.argv) != 2:
        sys.exit('usage: python -W ignore doc/man_pages.py DIRECTORY')
    # The width of the lines in the pages does not depend on the terminal.
    os.environ['COLUMNS'] = '88'
    write(Path(sys.argv[1]))
