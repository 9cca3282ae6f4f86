# SPDX-License-Identifier: Apache-2.0
"""An interface driver for Neutron's agents that needs no virtual switch; loaded in Neutron's virtual environment.

Each port is a pair of interfaces: one end in the router's or network's namespace, under the name that the agent gives
it; the other in the agent's own namespace, called ``peer`` and the first ten characters of the port's id.
"""

from neutron.agent.linux import interface, ip_lib

PEER = 'peer'


def peer_name(port_id):
    """The name of a port's other end."""
    return f'{PEER}{port_id[:10]}'


class VethDriver(interface.LinuxInterfaceDriver):
    """``interface_driver = neutron_interfaces.VethDriver``"""

    def plug_new(
        self, network_id, port_id, device_name, mac_address, bridge=None, namespace=None, prefix=None, mtu=None
    ):
        """Called by the agent for a port that has no interface yet."""
        # In the agent's namespace first: the namespace of a router may have another interface of the peer's name.
        peer, device = ip_lib.IPWrapper().add_veth(peer_name(port_id), device_name, namespace2=namespace)
        device.link.set_address(mac_address)
        for end in (peer, device):
            end.link.set_up()

    def unplug(self, device_name, bridge=None, namespace=None, prefix=None):
        """Called by the agent for a port that was deleted; the other end disappears with it."""
        ip_lib.IPDevice(device_name, namespace=namespace).link.delete()
