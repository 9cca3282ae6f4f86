# SPDX-License-Identifier: Apache-2.0
"""Two instances, one with everything and one with nothing, and an app that answers for them."""

from __future__ import annotations

import hashlib
import hmac

import webtest

from metadata_wsgi.inventory import parse
from metadata_wsgi.metadata_service.app import MetadataApp
from metadata_wsgi.metadata_service.password import Passwords

SECRET = b'a secret of tests'

INVENTORY = parse(
    b"""\
networks:
- id: n1
  mtu: 1450
  subnets:
  - {cidr: 10.1.1.0/24, gateway: 10.1.1.1, dns: [10.1.1.1]}
  - {cidr: '2001:db8:1::/64', gateway: '2001:db8:1::1'}
- id: n2
ports:
- {id: 34d94e65-960f, network: n1, mac: 'fa:16:3e:ea:74:ca', addresses: [10.1.1.2, '2001:db8:1::2'], instance: full}
- {id: bare-port, network: n2, mac: 'fa:16:3e:00:00:02', addresses: [10.1.1.2], instance: bare}
instances:
- id: full
  project: red
  name: vm-full
  hostname: vm-full.example.org
  instance_type: m1.test
  image: ami-00000004
  security_groups: [default, web]
  public_keys: {key-a: ssh-ed25519 AAAA a@test, key-b: ssh-rsa BBBB b@test}
  metadata: {role: test}
  user_data: "#cloud-config\\n"
  vendor_data: {cloud-init: x}
  vendor_data2: {dynamic: {a: 1}}
- {id: bare, project: blue, name: vm-bare}
""",
    'f.yaml',
)
FULL, BARE = INVENTORY.instances['full'], INVENTORY.instances['bare']


def nova(directory='/nonexistent'):
    """What stands in Nova's place."""
    return MetadataApp(shared_secret=SECRET, current=lambda: INVENTORY, passwords=Passwords(str(directory)))


def app(directory='/nonexistent'):
    """The same, with webtest's checks of WSGI around it."""
    return webtest.TestApp(nova(directory))


def signed(instance='full', tenant='red', secret=SECRET):
    """The headers that the signature filter sets."""
    return {
        'X-Instance-ID': instance,
        'X-Instance-ID-Signature': hmac.new(secret, instance.encode(), hashlib.sha256).hexdigest(),
        'X-Tenant-ID': tenant,
    }
