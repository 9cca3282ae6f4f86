# SPDX-License-Identifier: Apache-2.0
"""``metadata-wsgi``: the commands that an operator runs by hand.

Only the module of the verb on the command line is imported. To import all modules would take 0.7 s.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version

from metadata_wsgi.errors import MetadataError

PROGRAM = 'metadata-wsgi'

VERBS = {
    'lab': ('lab',),
    'attach': ('attach', 'detach', 'attached'),
    'keeper': ('keeper',),
    'adopt': ('adopt', 'give-back'),
    'check_config': ('check-config', 'show-pipeline'),
    'explain': ('explain',),
    'status': ('status',),
    'watch': ('watch',),
}
"""For each module of this package, the verbs that its ``add_verb`` or ``add_verbs`` declares."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    args = make_parser(_modules_of(words)).parse_args(words)
    try:
        code: int = args.run(args)
    except MetadataError as error:
        print(f'{PROGRAM} {args.verb}: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of the output has closed the pipe. With /dev/null a later flush does not raise again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def make_parser(modules: Iterable[str] = tuple(VERBS)) -> argparse.ArgumentParser:
    """Return the parser with the verbs of ``modules``, by default the verbs of all modules."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description='The commands that an operator runs by hand.', allow_abbrev=False
    )
    parser.add_argument('--version', action='version', version=f'{PROGRAM} {version("metadata_wsgi")}')
    verbs = parser.add_subparsers(dest='verb', metavar='verb', required=True)
    for name in modules:
        module = importlib.import_module(f'metadata_wsgi.cli.{name}')
        (module.add_verbs if hasattr(module, 'add_verbs') else module.add_verb)(verbs)
    return parser


def _modules_of(words: Sequence[str]) -> list[str]:
    """The module of the verb in ``words``; no module for ``--version``; all modules for --help and for errors."""
    if words[:1] == ['--version']:
        return []
    return [name for name, verbs in VERBS.items() if words and words[0] in verbs] or list(VERBS)


if __name__ == '__main__':
    sys.exit(main())
