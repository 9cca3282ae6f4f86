# SPDX-License-Identifier: Apache-2.0
"""The sample configuration file, generated from the options that the code declares.

``python tests/genconfig.py check`` says whether etc/metadata_agent.ini.sample is up to date, ``write`` makes it so.
"""

import contextlib
import io
import sys
from pathlib import Path

from oslo_config import generator

SAMPLE = Path(__file__).parent.parent / 'etc' / 'metadata_agent.ini.sample'


def generated():
    """What the sample should be."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        generator.main(['--namespace', 'metadata_wsgi', '--wrap-width', '100'])
    return out.getvalue()


def main():
    """Run it; exit code 1 when the sample is stale."""
    if sys.argv[1:] == ['write']:
        SAMPLE.write_text(generated())
    elif SAMPLE.read_text() != generated():
        sys.exit(f'{SAMPLE.name} is not what the code declares; run: tox -e genconfig -- write')


if __name__ == '__main__':
    main()
