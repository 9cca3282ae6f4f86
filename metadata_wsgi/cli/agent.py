# SPDX-License-Identifier: Apache-2.0
"""``quantum-metadata-agent``: serve the ``agent`` pipeline of the paste file on the unix socket.

Runs in the foreground. ``--config-file`` may be repeated; without it the first that exists of
/etc/metadata_wsgi, /etc/quantum and /etc/neutron's ``metadata_agent.ini`` is read. Logging options are
oslo.log's. SIGHUP reloads, SIGTERM drains.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from oslo_config import cfg
from oslo_log import log

from metadata_wsgi.cli import visibility_check
from metadata_wsgi.config import config_files, state_paths
from metadata_wsgi.errors import MetadataError
from metadata_wsgi.keeper.protocol import ONE_HOP
from metadata_wsgi.net import listeners
from metadata_wsgi.pipeline import paste_loader
from metadata_wsgi.pipeline.environ_keys import NAMESPACE
from metadata_wsgi.privileges import identity
from metadata_wsgi.server import master

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

LOG = logging.getLogger(__name__)

PROGRAM = 'quantum-metadata-agent'

OPTS = [
    cfg.StrOpt('api_paste_config', help='The paste file. The one that came with the package is the default.'),
    cfg.BoolOpt(
        'metadata_one_hop',
        default=False,
        help='Serve the routers that are attached with --mode one_hop, through the pipeline one_hop.',
    ),
    cfg.BoolOpt(
        'metadata_any_destination',
        default=False,
        help='In one hop, serve also guests that did not ask 169.254.169.254:80 or [fe80::a9fe:a9fe]:80: '
        'where something else than our rules brings them here, and keeps strangers out.',
    ),
    cfg.BoolOpt(
        'metadata_look_at_start',
        default=True,
        help='Ask the directory when the agent starts, without waiting for it, whether it shows the ports of other '
        'projects, and log it if it does not.',
    ),
]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    try:
        conf = _configure(sys.argv[1:] if argv is None else argv)
        workers = _workers(conf)
        global_conf = {'config_file': ','.join(conf.config_file)} if conf.config_file else {}
        agent = master.Server(
            lambda: _application(conf, global_conf),
            [_listen(conf, workers)],
            settings=lambda: _settings(conf),
            name=PROGRAM,
            keeper=(os.path.join(conf.state_path, 'listeners'), ONE_HOP) if conf.metadata_one_hop else None,
            identity=lambda: workers,
            any_destination=conf.metadata_any_destination,
            when_tried=lambda: _warn(conf),
            in_first=visibility_check.look_beside if conf.metadata_look_at_start else lambda app: None,
        )
        agent.try_loading()
    except MetadataError as error:
        return master.refuse(PROGRAM, error)
    agent.run()
    return 0


def _configure(argv: Sequence[str]) -> cfg.ConfigOpts:
    conf = cfg.ConfigOpts()
    opts = [*OPTS, *state_paths.OPTS, *listeners.OPTS, *identity.OPTS, *master.OPTS]
    conf.register_opts(opts)
    log.register_options(conf)
    config_files.parse(conf, config_files.files({}), argv)
    config_files.check(conf, opts, 'DEFAULT', conf.config_file)
    log.setup(conf, 'metadata_wsgi')
    return conf


def _application(conf: cfg.ConfigOpts, global_conf: dict[str, str]) -> Any:
    path = conf.api_paste_config or paste_loader.default_paste_file()
    from_proxies = paste_loader.load(path, 'agent', global_conf)
    if not conf.metadata_one_hop:
        return from_proxies
    from_guests = paste_loader.load(path, 'one_hop', global_conf)

    return _BySocket(from_proxies, from_guests)


class _BySocket:
    """Serves namespace proxies by ``app``, guests by ``one_hop``."""

    def __init__(self, app: Any, one_hop: Any) -> None:
        self.app = app
        self._one_hop = one_hop

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """By whether the socket knows its namespace."""
        answer: Iterable[bytes] = (self._one_hop if NAMESPACE in environ else self.app)(environ, start_response)
        return answer


def _warn(conf: cfg.ConfigOpts) -> None:
    for sentence in config_files.exposed(conf.config_file or config_files.files({}), config_files.published()):
        LOG.warning('%s', sentence)


def _workers(conf: cfg.ConfigOpts) -> identity.Identity | None:
    workers = identity.resolve_workers(conf.metadata_user, conf.metadata_group)
    if workers is None:
        return None
    if workers.name == 'nobody' and not conf.metadata_user:
        LOG.warning(
            'The workers run as nobody, whom other services may use too: make a user of their own, '
            'useradd --system %s, or name one in metadata_user',
            identity.DEFAULT_USERS[0],
        )
    if conf.metadata_one_hop and conf.metadata_proxy_group:
        # The keeper's socket for workers belongs to that group.
        return replace(workers, groups=(listeners.gid_of(conf.metadata_proxy_group),))
    return workers


def _listen(conf: cfg.ConfigOpts, workers: identity.Identity | None) -> Any:
    user, group = conf.metadata_proxy_user, conf.metadata_proxy_group
    if workers and not user and not group:
        # Told nothing, the namespace proxies become the same.
        group = str(workers.gid)
    return listeners.unix_listener(
        conf.metadata_proxy_socket,
        mode=listeners.socket_mode(conf.metadata_proxy_socket_mode, user, group),
        user=user,
        group=group,
        backlog=conf.metadata_backlog,
    )


def _settings(conf: cfg.ConfigOpts) -> dict[str, Any]:
    fresh = config_files.load({'config_file': ','.join(conf.config_file or [])}, master.OPTS)
    return {
        'workers': fresh.metadata_workers or master.default_workers(),
        'backlog': fresh.metadata_backlog,
        'worker_connections': fresh.metadata_connections,
    }
