# SPDX-License-Identifier: Apache-2.0
"""The requests of one boot of Debian's cloud-init 22.4.2, in order, as recorded in front of a real Nova."""

_LEAVES = [
    'ami-id', 'ami-launch-index', 'ami-manifest-path', 'hostname', 'instance-action', 'instance-id', 'instance-type',
    'local-hostname', 'local-ipv4', 'public-hostname', 'public-ipv4', 'reservation-id', 'security-groups',
]  # fmt: skip

_TREE = [
    '',
    'block-device-mapping/',
    'block-device-mapping/ami',
    'block-device-mapping/root',
    'placement/',
    'placement/availability-zone',
    'public-keys/',
    'public-keys/0/openssh-key',
    *_LEAVES,
]

OPENSTACK = [
    '/openstack',
    '/openstack',
    '/openstack/2018-08-27/meta_data.json',
    '/openstack/2018-08-27/user_data',
    '/openstack/2018-08-27/vendor_data.json',
    '/openstack/2018-08-27/vendor_data2.json',
    '/openstack/2018-08-27/network_data.json',
    *(f'/latest/meta-data/{part}' for part in _TREE),
]

EC2 = [
    '/2009-04-04/meta-data/instance-id',
    '/2021-03-23/meta-data/instance-id',
    '/2018-09-24/meta-data/instance-id',
    '/2016-09-02/meta-data/instance-id',
    '/2009-04-04/user-data',
    *(f'/2009-04-04/meta-data/{part}' for part in _TREE),
]

REQUESTS_BY_DATASOURCE = {'OpenStack': OPENSTACK, 'Ec2': EC2}
"""By the datasource's name."""
