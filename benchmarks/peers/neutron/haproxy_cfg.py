# SPDX-License-Identifier: Apache-2.0
"""Print what Neutron itself writes into the configuration of a router's haproxy, with its default options.

haproxy_cfg.py SOCKET: the router's id, the port and the pid file are @ROUTER@, @PORT@ and @PIDFILE@.
"""

import os
import sys

from neutron.agent.metadata.driver import HaproxyConfigurator
from neutron.conf.agent.metadata import config
from oslo_config import cfg
from oslo_log import log

log.register_options(cfg.CONF)
config.register_meta_conf_opts(config.METADATA_RATE_LIMITING_OPTS, cfg.CONF, group=config.RATE_LIMITING_GROUP)
config.register_meta_conf_opts(config.METADATA_HAPROXY_OPTS, cfg.CONF, group=config.HAPROXY_GROUP)
cfg.CONF([], default_config_files=[])
made = HaproxyConfigurator(
    network_id=None,
    router_id='@ROUTER@',
    unix_socket_path=sys.argv[1],
    host='0.0.0.0',
    port='@PORT@',
    user=str(os.geteuid()),
    group=str(os.getegid()),
    state_path='',
    pid_file='@PIDFILE@',
    rate_limiting_config=cfg.CONF.metadata_rate_limiting,
    haproxy_config=cfg.CONF.metadata_haproxy,
)
print(made.haproxy_cfg)
