# SPDX-License-Identifier: Apache-2.0
"""``quantum-metadata-agent``: serve the ``agent`` pipeline of the paste file on the unix socket.

Runs in the foreground. ``--config-file`` may be repeated; without it the first that exists of
/etc/metadata_wsgi, /etc/quantum and /etc/neutron's ``metadata_agent.ini`` is read. Logging options are
oslo.log's. SIGHUP reloads, SIGTERM drains.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any

from oslo_config import cfg
from oslo_log import log

from metadata_wsgi import config, paths, pipeline, server, sockets
from metadata_wsgi.errors import MetadataError

LOG = logging.getLogger(__name__)

PROGRAM = 'quantum-metadata-agent'

OPTS = [
    cfg.StrOpt('api_paste_config', help='The paste file. The one that came with the package is the default.'),
]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    try:
        conf = _configure(sys.argv[1:] if argv is None else argv)
        global_conf = {'config_file': ','.join(conf.config_file)} if conf.config_file else {}
        agent = server.Server(
            lambda: pipeline.load(conf.api_paste_config or pipeline.shipped(), 'agent', global_conf),
            _listen(conf),
            settings=lambda: _settings(conf),
            name=PROGRAM,
        )
        agent.try_loading()
    except MetadataError as error:
        return server.refuse(PROGRAM, error)
    agent.run()
    return 0


def _configure(argv: Sequence[str]) -> cfg.ConfigOpts:
    conf = cfg.ConfigOpts()
    opts = [*OPTS, *paths.OPTS, *sockets.OPTS, *server.OPTS]
    conf.register_opts(opts)
    log.register_options(conf)
    config.parse(conf, config.files({}), argv)
    config.check(conf, opts, 'DEFAULT', conf.config_file)
    log.setup(conf, 'metadata_wsgi')
    return conf


def _listen(conf: cfg.ConfigOpts) -> Any:
    user, group = conf.metadata_proxy_user, conf.metadata_proxy_group
    return sockets.unix_listener(
        conf.metadata_proxy_socket,
        mode=sockets.mode(conf.metadata_proxy_socket_mode, user, group),
        user=user,
        group=group,
        backlog=conf.metadata_backlog,
    )


def _settings(conf: cfg.ConfigOpts) -> dict[str, Any]:
    fresh = config.load({'config_file': ','.join(conf.config_file or [])}, server.OPTS)
    return {
        'workers': fresh.metadata_workers or server.default_workers(),
        'backlog': fresh.metadata_backlog,
        'worker_connections': fresh.metadata_connections,
    }
