# SPDX-License-Identifier: Apache-2.0
"""Writes instances into Nova's databases in place of a compute service. Runs in Nova's virtual environment.

Reads a JSON list of instances from stdin; the first argument is the configuration file. Prints the EC2 ids in order.
"""

import json
import sys

from nova import monkey_patch

monkey_patch.patch(backend='threading')

from nova import config, context, objects  # noqa: E402
from nova.network import model  # noqa: E402

config.parse_args(['nova_rows', '--config-file', sys.argv[1]])
objects.register_all()
everywhere = context.get_admin_context()
cell = next(found for found in objects.CellMappingList.get_all(everywhere) if not found.is_cell0())


def make_flavor():
    flavor = objects.Flavor(
        everywhere, flavorid='tiny', name='tiny', vcpus=1, memory_mb=64, root_gb=1, ephemeral_gb=0, swap=0,
        rxtx_factor=1.0, vcpu_weight=0, disabled=False, is_public=True, description=None, extra_specs={},
    )  # fmt: skip
    flavor.create()
    return flavor


def network_info(wanted):
    """Nova's network info cache for the instance's port."""
    subnets = [
        model.Subnet(cidr=cidr, ips=[model.FixedIP(address=address)], dns=[], routes=[], gateway=None)
        for cidr, address in wanted['addresses']
    ]
    network = model.Network(id=wanted['network_id'], label='net', bridge='br-int', mtu=1450, subnets=subnets)
    name = 'tap' + wanted['port_id'][:11]
    return model.NetworkInfo(
        [model.VIF(id=wanted['port_id'], address=wanted['mac'], network=network, type='ovs', devname=name, active=True)]
    )


def make_instance(wanted, flavor):
    key = objects.KeyPair(
        name='mine', type='ssh', user_id='tests', fingerprint='00', public_key=wanted['public_key']
    )  # fmt: skip
    with context.target_cell(everywhere, cell) as inside:
        instance = objects.Instance(
            inside, uuid=wanted['instance_id'], project_id=wanted['project_id'], user_id='tests',
            hostname=wanted['name'], display_name=wanted['name'], host='here', availability_zone='nova',
            vm_state='active', power_state=1, launch_index=0, reservation_id='r-tests', image_ref='',
            kernel_id='', ramdisk_id='', root_device_name='/dev/vda', memory_mb=64, vcpus=1, root_gb=1, ephemeral_gb=0,
            key_name='mine', key_data=wanted['public_key'], keypairs=objects.KeyPairList(objects=[key]),
            user_data=wanted['user_data_base64'], metadata={'role': wanted['name']}, system_metadata={},
            flavor=flavor, old_flavor=None, new_flavor=None, instance_type_id=flavor.id,
        )  # fmt: skip
        instance.create()
        cached = objects.InstanceInfoCache.new(inside, instance.uuid)
        cached.network_info = network_info(wanted)
        cached.save()
        ec2_id = instance.ec2_ids.instance_id
    objects.InstanceMapping(
        everywhere, instance_uuid=wanted['instance_id'], project_id=wanted['project_id'], user_id='tests',
        cell_mapping=cell, queued_for_delete=False,
    ).create()  # fmt: skip
    return ec2_id


objects.HostMapping(everywhere, host='here', cell_mapping=cell).create()
flavor = make_flavor()
print(json.dumps([make_instance(wanted, flavor) for wanted in json.load(sys.stdin)]))
