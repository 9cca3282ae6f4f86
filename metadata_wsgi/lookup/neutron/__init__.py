# SPDX-License-Identifier: Apache-2.0
"""Finds instances through the API of Neutron, which Grizzly calls Quantum.

``directory = neutron`` selects it, and so does ``directory = quantum``. A lookup takes two queries: the networks of
the router, and the port that has the address on one of them. The user's role must be allowed to see every project's
ports: ``service`` or ``admin``. A role that is not gets empty lists, so that no instance would seem to exist.
``metadata-wsgi check-config`` and the start of the agent detect that; requests then get 503, not 404.

Credentials are Grizzly's options in ``[DEFAULT]`` (``auth_url``, ``admin_user``, ...), or the options of any
keystoneauth plugin in ``[neutron]`` (or ``[quantum]``), or those of Neutron itself in ``neutron.conf``. ``options`` has
the order::

    [neutron]
    auth_type = v3applicationcredential
    auth_url = http://keystone:5000/v3
    application_credential_id = ...
    application_credential_secret = ...
    region_name = RegionOne
    valid_interfaces = internal
    cafile = /etc/ssl/cloud.pem

Modules: ``options`` reads the configuration, ``transport`` limits each request to its deadline, ``auth`` holds the
token, ``ports_api`` lists ports, ``queries`` has the queries and interprets the responses, ``batching`` sends the
queries of concurrent lookups together, ``lookup`` combines them.
Of a client's request only the source address is sent to Neutron.
"""

from __future__ import annotations

from collections.abc import Mapping

from metadata_wsgi.lookup.neutron.lookup import NeutronLookup, VisibilityCheck
from metadata_wsgi.lookup.neutron.options import GROUP_OPTS, GROUPS, OPTS, make_ports_api, read
from metadata_wsgi.lookup.protocol import StepCache

__all__ = ['GROUPS', 'GROUP_OPTS', 'OPTS', 'NeutronLookup', 'VisibilityCheck', 'factory']


def factory(global_conf: Mapping[str, str], *, networks_cache: StepCache | None = None) -> NeutronLookup:
    """For ``directory = neutron``. Sends nothing yet: the first lookup does, or ``probe``."""
    settings = read(global_conf)
    return NeutronLookup(make_ports_api(settings), networks_cache=networks_cache, credentials=settings.credentials)
