# SPDX-License-Identifier: Apache-2.0
"""Runs in Neutron's virtual environment: Neutron's own driver starts, watches and ends a metadata proxy.

``python neutron_driver.py STATE_PATH``, then one command a line on standard input, one JSON reply a line on standard
output. The program that runs under the name ``haproxy`` is the first one on PATH.

- ``spawn KIND ID NAMESPACE PORT ADDRESS [ADDRESS_V6 INTERFACE]``: as the L3 agent (KIND router), the DHCP agent
  (KIND network) or the OVN metadata agent (KIND ovn) does; replies with pid, command line and whether Neutron's
  manager calls it active
- ``destroy KIND ID NAMESPACE``: ends it, as when a router is deleted
- ``active ID``: whether the process monitor finds the process alive
- ``respawn ID``: what the process monitor does where it finds it dead
"""

import json
import sys

from neutron import privileged
from neutron.agent.linux import external_process
from neutron.agent.metadata import driver
from neutron.agent.ovn.metadata import driver as ovn_driver
from neutron.common import config
from neutron.conf.agent import common as agent_options
from neutron.conf.agent.metadata import config as metadata_options
from oslo_config import cfg

KINDS = {
    'router': (driver.MetadataDriver, 'router_id'),
    'network': (driver.MetadataDriver, 'network_id'),
    'ovn': (ovn_driver.MetadataDriver, 'network_id'),
}
"""The driver of each kind of agent, and the name of its id."""


class Monitor:
    """Neutron's process monitor without its thread: the commands call what the thread would call."""

    def __init__(self):
        self.managers = {}

    def register(self, uuid, service, manager):
        self.managers[uuid] = manager

    def unregister(self, uuid, service):
        self.managers.pop(uuid, None)


def configured(state_path):
    conf = cfg.CONF
    config.register_common_config_options()
    agent_options.register_root_helper(conf)
    agent_options.register_agent_state_opts_helper(conf)
    agent_options.register_external_process_opts(conf)
    metadata_options.register_meta_conf_opts(metadata_options.SHARED_OPTS, cfg=conf)
    for options, group in (
        (getattr(metadata_options, 'METADATA_RATE_LIMITING_OPTS', None), 'metadata_rate_limiting'),
        (getattr(metadata_options, 'METADATA_HAPROXY_OPTS', None), 'metadata_haproxy'),
    ):
        if options and group not in conf:
            conf.register_opts(options, group)
    conf(
        ['--config-file', '/dev/null'],
        project='neutron',
    )
    conf.set_override('state_path', state_path)
    conf.set_override('root_helper', '', 'AGENT')
    # Root already: privileged calls run in this process instead of a daemon that sudo starts.
    for context in (privileged.default, privileged.namespace_cmd, privileged.link_cmd):
        context.set_client_mode(False)
    return conf


def main():
    conf, monitor = configured(sys.argv[1]), Monitor()
    print(json.dumps({'ready': True}), flush=True)
    for line in sys.stdin:
        verb, *words = line.split()
        if verb == 'spawn':
            kind, id_, namespace, port, address, *v6 = words
            used, id_name = KINDS[kind]
            used.spawn_monitored_metadata_proxy(
                monitor,
                namespace,
                int(port),
                conf,
                bind_address=address,
                **{id_name: id_},
                **(dict(zip(('bind_address_v6', 'bind_interface'), v6, strict=True)) if v6 else {}),
            )
            reply = state(monitor, id_)
        elif verb == 'destroy':
            kind, id_, namespace = words
            KINDS[kind][0].destroy_monitored_metadata_proxy(monitor, id_, conf, namespace)
            reply = {'destroyed': True}
        elif verb == 'active':
            reply = state(monitor, words[0])
        elif verb == 'respawn':
            monitor.managers[words[0]].enable()
            reply = state(monitor, words[0])
        print(json.dumps(reply), flush=True)


def state(monitor, id_):
    manager = monitor.managers.get(id_)
    if manager is None:
        return {'registered': False, 'active': False}
    assert isinstance(manager, external_process.ProcessManager)
    return {'registered': True, 'active': manager.active, 'pid': manager.pid, 'cmdline': manager.cmdline}


if __name__ == '__main__':
    main()
