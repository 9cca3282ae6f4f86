# SPDX-License-Identifier: Apache-2.0
"""The keeper's process. ``metadata-wsgi keeper`` reads the options, then executes this module.

The keeper runs as root and does not end by itself, so everything that it imports stays in memory. So it imports no part
of the package that reads a configuration or runs a server. The command line is ``python -m
metadata_wsgi.cli.keeper_process STATE_PATH OWNER GROUP [FLAG...]``. OWNER and GROUP are those of the socket for
workers; they may be empty. The flags are ``daemonize``, ``use-json`` and ``use-journal``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Collection, Mapping, Sequence

from metadata_wsgi.cli import exit_codes, log_output
from metadata_wsgi.errors import ConfigError, MetadataError
from metadata_wsgi.keeper.fdstore import SystemdFdStore
from metadata_wsgi.keeper.server import Keeper
from metadata_wsgi.namespace_proxy import daemonize
from metadata_wsgi.net.sd_notify import Notifier
from metadata_wsgi.privileges import drop

NAME = 'metadata-wsgi'
"""The name of the process in process lists, in place of the interpreter's name."""
LOG_FORMAT = '%(asctime)s %(process)d %(levelname)s %(name)s %(message)s'
SYSLOG = '/dev/log'


def command_line(state_path: str, owner: str, group: str, flags: Mapping[str, bool]) -> list[str]:
    """The command line of the keeper's process. ``flags``: name of each flag, and whether it is set."""
    # -P: nothing is imported from the current directory.
    words = [sys.executable, '-P', '-m', 'metadata_wsgi.cli.keeper_process', state_path, owner, group]
    return words + [flag for flag, is_set in flags.items() if is_set]


def main(argv: Sequence[str]) -> int:
    """Run the keeper until SIGTERM. Returns the exit code."""
    state_path, owner, group, *flags = argv
    with contextlib.suppress(OSError), open('/proc/self/comm', 'w', encoding='ascii') as name:
        name.write(NAME)
    _set_up_log(flags)
    drop.no_core_files()
    ready = daemonize.daemonize() if 'daemonize' in flags else lambda: None
    notifier = Notifier.from_environ()
    fdstore = SystemdFdStore(notifier) if notifier else None
    try:
        keeper = Keeper(state_path, user=owner, group=group, fdstore=fdstore, notifier=notifier)
    except MetadataError as error:
        print(f'metadata-wsgi keeper: {error}', file=sys.stderr)
        return exit_codes.CANNOT_TELL if isinstance(error, ConfigError) else exit_codes.NOT_WELL
    if fdstore:
        keeper.restore(fdstore.restore(os.environ))
    ready()
    keeper.run()
    return 0


def _set_up_log(flags: Collection[str]) -> None:
    handler: logging.Handler = logging.StreamHandler()
    if 'daemonize' in flags and os.path.exists(SYSLOG):
        from logging.handlers import SysLogHandler

        handler = SysLogHandler(SYSLOG)
    log_output.set_up(
        [handler],
        text_format=LOG_FORMAT,
        level=logging.INFO,
        use_json='use-json' in flags,
        use_journal='use-journal' in flags,
    )


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
