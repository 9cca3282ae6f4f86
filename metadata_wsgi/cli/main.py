# SPDX-License-Identifier: Apache-2.0
"""``metadata-wsgi``: the commands that an operator runs by hand."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from metadata_wsgi.cli import attach, check_config, explain, keeper, lab, status, watch
from metadata_wsgi.errors import MetadataError
from metadata_wsgi.server import master

PROGRAM = 'metadata-wsgi'


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__.partition('\n')[0], allow_abbrev=False)
    verbs = parser.add_subparsers(dest='verb', metavar='verb', required=True)
    lab.add_verb(verbs)
    attach.add_verbs(verbs)
    keeper.add_verb(verbs)
    check_config.add_verbs(verbs)
    explain.add_verb(verbs)
    status.add_verb(verbs)
    watch.add_verb(verbs)
    args = parser.parse_args(argv)
    try:
        code: int = args.run(args)
    except MetadataError as error:
        return master.fail(f'{PROGRAM} {args.verb}', error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of the output has closed the pipe; a later flush must not raise again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


if __name__ == '__main__':
    sys.exit(main())
