# SPDX-License-Identifier: Apache-2.0
"""A server whose workers wait right after the fork, while the file ``hold`` exists: for tests of signals.

python -m tests.e2e.held_fork DIRECTORY    # listens on the unix socket DIRECTORY/socket
"""

import logging
import os
import sys
import time
from pathlib import Path

from metadata_wsgi.net import listeners
from metadata_wsgi.server.master import Server


def respond(environ, start_response):
    start_response('200 OK', [('Content-Length', '2')])
    return [b'ok']


def main(directory):
    logging.basicConfig(level=logging.INFO)
    hold = directory / 'hold'

    def wait():
        (directory / 'waiting').write_text(str(os.getpid()))
        while hold.exists():
            time.sleep(0.02)

    listener = listeners.unix_listener(str(directory / 'socket'), mode=0o600, option='directory', program='held_fork')
    Server(lambda: respond, [listener], settings=lambda: {'workers': 1}, name='held_fork', on_worker_start=wait).run()


if __name__ == '__main__':
    main(Path(sys.argv[1]))
