# SPDX-License-Identifier: Apache-2.0
"""``metadata-wsgi completion bash|zsh``: the script that completes verbs, options, files and the ids of this host.

shtab generates the script from the parsers that read the command line. When a key is pressed, the script runs no
Python. It reads the ids from the names in /run/netns.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from metadata_wsgi.cli import main, verbs
from metadata_wsgi.cli.exit_codes import WELL

FILES = ('config_file', 'paste_file', 'file', 'program', 'output')
DIRECTORIES = ('state_path', 'log_dir', 'neutron_lock_path', 'ha_confs_path')
IDS = {'router_id': 'qrouter-', 'network_id': 'qdhcp-'}
"""Names of arguments whose values are files (FILES), directories (DIRECTORIES) and ids (IDS, with the prefix of the
namespace name)."""

PREAMBLE = {
    'bash': """
_metadata_wsgi_ids() {
  local names
  names=$(cd /run/netns 2>/dev/null && printf '%s\\n' "$1"*)
  compgen -W "${names//"$1"/}" -- "$2"
}
_metadata_wsgi_router_id() { _metadata_wsgi_ids qrouter- "$1"; }
_metadata_wsgi_network_id() { _metadata_wsgi_ids qdhcp- "$1"; }
""",
    'zsh': """
_metadata_wsgi_router_id() { compadd -- /run/netns/qrouter-*(N:t:s/qrouter-//) }
_metadata_wsgi_network_id() { compadd -- /run/netns/qdhcp-*(N:t:s/qdhcp-//) }
""",
}


def add_verb(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        subparsers,
        'completion',
        description='Prints the completion script of a shell. bash: metadata-wsgi completion bash > '
        '/usr/share/bash-completion/completions/metadata-wsgi. zsh: metadata-wsgi completion zsh > '
        '/usr/share/zsh/vendor-completions/_metadata-wsgi. The packages install both.',
    )
    parser.add_argument('shell', choices=sorted(PREAMBLE), help='the shell')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    sys.stdout.write(script(args.shell))
    return WELL


def script(shell: str) -> str:
    """The completion script for ``shell``."""
    import shtab

    parser = main.make_parser()
    for action in _actions(parser):
        if isinstance(action, argparse._SubParsersAction):
            # zsh lists each verb with its description. The short help text is used as the description.
            for choice in action._choices_actions:
                action.choices[choice.dest].description = choice.help
        elif action.dest in FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.dest in DIRECTORIES:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.dest in IDS:
            function = f'_metadata_wsgi_{action.dest}'
            action.complete = dict.fromkeys(PREAMBLE, function)  # type: ignore[attr-defined]
    text: str = shtab.complete(parser, shell, preamble=PREAMBLE)
    return text


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Every argument of the parser and of its subparsers."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                yield from _actions(subparser)
