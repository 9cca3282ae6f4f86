# SPDX-License-Identifier: Apache-2.0
import pytest

from metadata_wsgi.metadata_service import ec2
from tests.unit.metadata_service.cloud import BARE, FULL

# Noted from nova 34.0.0, version by version.
FIRST = (
    b'ami-id ami-launch-index ami-manifest-path hostname instance-id local-ipv4 public-keys/ '
    b'reservation-id security-groups'
)
HOSTNAMES = (
    b'ami-id ami-launch-index ami-manifest-path hostname instance-id local-hostname local-ipv4 '
    b'public-hostname public-ipv4 public-keys/ reservation-id security-groups'
)
TYPE = HOSTNAMES.replace(b'instance-id ', b'instance-id instance-type ')
DEVICES = TYPE.replace(b'ami-manifest-path ', b'ami-manifest-path block-device-mapping/ ')
PLACEMENT = DEVICES.replace(b'local-ipv4 ', b'local-ipv4 placement/ ')
ALL = (
    b'ami-id ami-launch-index ami-manifest-path block-device-mapping/ hostname instance-action instance-id '
    b'instance-type local-hostname local-ipv4 placement/ public-hostname public-ipv4 '
    b'public-keys/ reservation-id security-groups'
)


@pytest.mark.parametrize(
    ('version', 'names'),
    [
        ('1.0', FIRST),
        ('2007-01-19', HOSTNAMES),
        ('2007-03-01', HOSTNAMES),
        ('2007-08-29', TYPE),
        ('2007-10-10', TYPE),
        ('2007-12-15', DEVICES),
        ('2008-02-01', PLACEMENT),
        ('2008-09-01', ALL),
        ('2009-04-04', ALL),
        ('latest', ALL),
    ],
)
def test_each_version_lists_what_nova_lists(version, names):
    assert ec2.find(FULL, [version, 'meta-data']) == names.replace(b' ', b'\n')


@pytest.mark.parametrize(
    ('path', 'content'),
    [
        ('', b'meta-data/\nuser-data'),
        ('user-data', b'#cloud-config\n'),
        ('meta-data/ami-id', b'ami-00000004'),
        ('meta-data/ami-launch-index', b'0'),
        ('meta-data/ami-manifest-path', b'FIXME'),
        ('meta-data/block-device-mapping', b'ami\nroot'),
        ('meta-data/block-device-mapping/ami', b'vda'),
        ('meta-data/block-device-mapping/root', b'/dev/vda'),
        ('meta-data/hostname', b'vm-full.example.org'),
        ('meta-data/instance-action', b'none'),
        ('meta-data/instance-id', b'i-a18b869b'),
        ('meta-data/instance-type', b'm1.test'),
        ('meta-data/local-hostname', b'vm-full.example.org'),
        ('meta-data/local-ipv4', b'10.1.1.2'),
        ('meta-data/placement', b'availability-zone'),
        ('meta-data/placement/availability-zone', b'nova'),
        ('meta-data/public-hostname', b'vm-full.example.org'),
        ('meta-data/public-ipv4', b''),
        ('meta-data/public-keys', b'0=key-a\n1=key-b'),
        ('meta-data/public-keys/0', b'openssh-key'),
        ('meta-data/public-keys/0/openssh-key', b'ssh-ed25519 AAAA a@test'),
        ('meta-data/public-keys/1/openssh-key', b'ssh-rsa BBBB b@test'),
        ('meta-data/reservation-id', b'r-a18b869b'),
        ('meta-data/security-groups', b'default\nweb'),
        ('meta-data/public-keys/0=key-a', None),
        ('meta-data/public-keys/2', None),
        ('meta-data/public-keys/key-a', None),
        ('meta-data/hostname/more', None),
        ('user-data/more', None),
        ('meta-data/ramdisk-id', None),
        ('api/token', None),
        ('dynamic', None),
    ],
)
def test_content_of_a_path(path, content):
    assert ec2.find(FULL, ['latest', *path.split('/')] if path else ['latest']) == content


@pytest.mark.parametrize('version', ['1999-01-01', '2018-09-24', '2021-03-23', 'openstack', ''])
def test_an_unknown_version_is_not_found(version):
    """cloud-init tries newer versions first and must get 404."""
    assert ec2.find(FULL, [version, 'meta-data', 'instance-id']) is None


def test_an_instance_without_keys_and_user_data_has_no_names_for_them():
    assert ec2.find(BARE, ['latest']) == b'meta-data/'
    assert ec2.find(BARE, ['latest', 'user-data']) is None
    assert ec2.find(BARE, ['latest', 'meta-data']) == ALL.replace(b'public-keys/ ', b'').replace(b' ', b'\n')
    assert ec2.find(BARE, ['latest', 'meta-data', 'public-keys']) is None
