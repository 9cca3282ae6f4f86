# SPDX-License-Identifier: Apache-2.0
"""Generates the sample configuration file from the options that the code declares.

``python tests/genconfig.py check`` fails if etc/metadata_agent.ini.sample is out of date; ``write`` writes it.
"""

import contextlib
import io
import sys
from pathlib import Path

from oslo_config import generator

SAMPLE = Path(__file__).parent.parent / 'etc' / 'metadata_agent.ini.sample'


def generated():
    """Return the text of the sample."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        generator.main(['--namespace', 'metadata_wsgi', '--wrap-width', '100'])
    return out.getvalue()


def main():
    """Run the program; exit code 1 if the sample is out of date."""
    if sys.argv[1:] == ['write']:
        SAMPLE.write_text(generated())
    elif SAMPLE.read_text() != generated():
        sys.exit(f'{SAMPLE.name} is out of date; run: tox -e genconfig -- write')


if __name__ == '__main__':
    main()
