# SPDX-License-Identifier: Apache-2.0
"""Who is at an address, from the API of Quantum, which is called Neutron today.

``directory = quantum`` chooses it. Two questions find a guest: which networks has the router, and which
port on these has the address. The role must be allowed to see every project's ports: ``service`` or
``admin``. One that may not is answered with empty lists, so that no guest would seem to exist; that is
found by ``metadata-wsgi check-config`` and logged when the agent starts, and guests are then answered 503, not 404.

Credentials are Grizzly's options in ``[DEFAULT]`` (``auth_url``, ``admin_user``, ...), or, where ``[quantum]``
(or ``[neutron]``) has an ``auth_type``, those of any keystoneauth plugin in that group::

    [quantum]
    auth_type = v3applicationcredential
    auth_url = http://keystone:5000/v3
    application_credential_id = ...
    application_credential_secret = ...
    region_name = RegionOne
    valid_interfaces = internal
    cafile = /etc/ssl/cloud.pem

Each file here has one concern: ``configured`` reads options, ``bounded`` keeps every request within its
deadline, ``access`` has the token, ``api`` asks, ``lookups`` says what to ask and what an answer means,
``directory`` puts them together. Nothing that a guest sent goes to Quantum but its address.
"""

from __future__ import annotations

from collections.abc import Mapping

from metadata_wsgi.lookup.neutron.lookup import NeutronLookup, Sight
from metadata_wsgi.lookup.neutron.options import GROUP_OPTS, GROUPS, OPTS, connect, read
from metadata_wsgi.lookup.protocol import StepCache

__all__ = ['GROUPS', 'GROUP_OPTS', 'OPTS', 'NeutronLookup', 'Sight', 'factory']


def factory(global_conf: Mapping[str, str], *, networks_cache: StepCache | None = None) -> NeutronLookup:
    """For ``directory = quantum``. Asks nobody yet: the first guest does, or ``probe``."""
    return NeutronLookup(connect(read(global_conf)), networks_cache=networks_cache)
