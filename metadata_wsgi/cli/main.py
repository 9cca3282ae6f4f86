# SPDX-License-Identifier: Apache-2.0
"""``metadata-wsgi``: the commands that an operator runs by hand.

Only the module of the verb on the command line is imported, because the import of all modules would take 0.7 s. A
module has its imports at the top, except those that are slow and seldom needed. ``exit_codes`` has the exit codes.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence

from metadata_wsgi.cli import exit_codes, verbs
from metadata_wsgi.cli.verbs import PROGRAM
from metadata_wsgi.errors import ConfigError, MetadataError, UsageError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Results and errors keep their order, even if both are written to one file or pipe.
        sys.stdout.reconfigure(line_buffering=True)
    words = sys.argv[1:] if argv is None else list(argv)
    parser = make_parser(_modules_of(words))
    args, unknown = parser.parse_known_args(words)
    if unknown:
        # Prints the usage of the verb. argparse itself would print the usage of the program.
        _parsers(parser)[args.verb].error(f'unrecognized arguments: {" ".join(unknown)}')
    try:
        code: int = args.run(args)
        # A write error of a pipe must occur here, before the exit code is returned.
        sys.stdout.flush()
    except (ConfigError, UsageError) as error:
        return _fail(args.verb, str(error), exit_codes.CANNOT_TELL)
    except MetadataError as error:
        return _fail(args.verb, str(error), exit_codes.NOT_WELL)
    except KeyboardInterrupt:
        return exit_codes.INTERRUPTED
    except BrokenPipeError:
        # The reader of the output has closed the pipe. With /dev/null a later flush does not raise again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exit_codes.CANNOT_TELL
    except OSError as error:
        return _fail(args.verb, str(error), exit_codes.CANNOT_TELL)
    except Exception as error:
        traceback.print_exc()
        text = f'unexpected error, please report it with the lines above: {type(error).__name__}'
        return _fail(args.verb, text, exit_codes.CANNOT_TELL)
    return code


def _fail(verb: str, text: str, code: int) -> int:
    print(f'{PROGRAM} {verb}: {text}', file=sys.stderr)
    return code


def make_parser(modules: Iterable[str] | None = None) -> argparse.ArgumentParser:
    """Return the parser, with the arguments of the verbs of ``modules``, by default the verbs of all modules."""
    names = {module for module, _ in verbs.VERBS.values()} if modules is None else {*modules}
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description='The commands that an operator runs by hand.',
        epilog='Exit codes: 0 done or well, 1 failed or not well, 2 cannot tell: wrong usage, no privileges, a file '
        'that cannot be used. "%(prog)s VERB --help" describes a verb.',
        allow_abbrev=False,
    )
    parser.add_argument('--version', action=_Version)
    subparsers = parser.add_subparsers(title='verbs', dest='verb', metavar='verb', required=True)
    for verb, (name, _) in verbs.VERBS.items():
        if verb in subparsers.choices:
            continue
        if name not in names:
            verbs.add_parser(subparsers, verb)
            continue
        module = importlib.import_module(f'metadata_wsgi.cli.{name}')
        (module.add_verbs if hasattr(module, 'add_verbs') else module.add_verb)(subparsers)
    return parser


class _Version(argparse.Action):
    """Prints the version. The library that reads the version is slow to import, so it is imported only here."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help='show the version and exit')

    def __call__(self, parser: argparse.ArgumentParser, *args: object) -> None:
        from importlib import metadata

        print(f'{PROGRAM} {metadata.version("metadata_wsgi")}')
        parser.exit()


def _parsers(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    """The parser of each verb."""
    (found,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return found.choices


def _modules_of(words: Sequence[str]) -> list[str]:
    """The module of the verb in ``words``; none for --version, --help and errors."""
    return [verbs.VERBS[words[0]][0]] if words and words[0] in verbs.VERBS else []


if __name__ == '__main__':
    sys.exit(main())
