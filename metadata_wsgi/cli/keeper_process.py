# SPDX-License-Identifier: Apache-2.0
"""The keeper's process, which ``metadata-wsgi keeper`` turns into once it knows its options.

It has no part of the package that reads a configuration or runs a server: it is root, it never ends, and what it
imports stays in memory. ``python -m metadata_wsgi.cli.keeper_process STATE_PATH OWNER GROUP [daemonize]``, where OWNER
and GROUP of the workers' socket may be empty.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Sequence

from metadata_wsgi.errors import MetadataError
from metadata_wsgi.keeper.fdstore import SystemdFdStore
from metadata_wsgi.keeper.server import Keeper
from metadata_wsgi.namespace_proxy import daemonize
from metadata_wsgi.privileges import drop

NAME = 'metadata-wsgi'
"""In process lists, instead of the name of the interpreter."""
DAEMONIZE = 'daemonize'
LOG_FORMAT = '%(asctime)s %(process)d %(levelname)s %(name)s %(message)s'
SYSLOG = '/dev/log'


def command_line(state_path: str, owner: str, group: str, *, in_background: bool) -> list[str]:
    """The command line of the process."""
    # -P: nothing is imported from the current directory.
    words = [sys.executable, '-P', '-m', 'metadata_wsgi.cli.keeper_process', state_path, owner, group]
    return [*words, DAEMONIZE] if in_background else words


def main(argv: Sequence[str]) -> int:
    """Run the keeper until SIGTERM; returns the exit code."""
    state_path, owner, group, *flags = argv
    with contextlib.suppress(OSError), open('/proc/self/comm', 'w', encoding='ascii') as name:
        name.write(NAME)
    _set_up_log(to_syslog=DAEMONIZE in flags and os.path.exists(SYSLOG))
    drop.no_core_files()
    ready = daemonize.daemonize() if DAEMONIZE in flags else lambda: None
    # Not for child processes: only the keeper itself may notify systemd.
    notify_address = os.environ.pop('NOTIFY_SOCKET', '')
    fdstore = SystemdFdStore(notify_address) if notify_address else None
    try:
        keeper = Keeper(state_path, user=owner, group=group, fdstore=fdstore)
    except MetadataError as error:
        print(f'metadata-wsgi keeper: {error}', file=sys.stderr)
        return 1
    if fdstore:
        keeper.restore(fdstore.restore(os.environ))
        fdstore.ready()
    ready()
    keeper.run()
    return 0


def _set_up_log(*, to_syslog: bool) -> None:
    handlers = None
    if to_syslog:
        from logging.handlers import SysLogHandler

        handlers = [SysLogHandler(SYSLOG)]
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, handlers=handlers)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
