# SPDX-License-Identifier: Apache-2.0
"""Finds instances through the API of Neutron, which Grizzly calls Quantum.

``directory = neutron`` or ``directory = quantum`` selects this lookup. A lookup sends two queries: for the networks of
the router, and for the port with the address on one of these networks. The agent's user needs a role that may see the
ports of all projects: ``service`` or ``admin``. With another role Neutron returns empty lists, as if no instance
existed. The lookup detects a missing role, and requests get 503 instead of 404. ``metadata-wsgi check-config`` reports
a missing role, and so does the agent when it starts. If no instance has the address, two more queries confirm that.

Credentials are Grizzly's options in ``[DEFAULT]`` (``auth_url``, ``admin_user``, ...), or the options of any
keystoneauth plugin in ``[neutron]`` (or ``[quantum]``), or Neutron's own credentials in ``neutron.conf``. The module
``options`` lists the credentials by precedence. An example::

    [neutron]
    auth_type = v3applicationcredential
    auth_url = http://keystone:5000/v3
    application_credential_id = ...
    application_credential_secret = ...
    region_name = RegionOne
    valid_interfaces = internal
    cafile = /etc/ssl/cloud.pem

Modules: ``options`` reads the configuration. ``transport`` limits each request to its deadline. ``auth`` gets and
renews the token. ``ports_api`` lists ports. ``queries`` makes the queries and interprets the responses. ``batching``
sends the queries of concurrent lookups together. ``lookup`` combines these modules. Of the data that a client can
choose, Neutron gets only the client's address and the request id.
"""

from __future__ import annotations

from collections.abc import Mapping

from metadata_wsgi.lookup.neutron.lookup import NeutronLookup, VisibilityCheck
from metadata_wsgi.lookup.neutron.options import GROUP_OPTS, GROUPS, OPTS, make_ports_api, read
from metadata_wsgi.lookup.protocol import StepCache

__all__ = ['GROUPS', 'GROUP_OPTS', 'OPTS', 'NeutronLookup', 'VisibilityCheck', 'factory']


def factory(global_conf: Mapping[str, str], *, networks_cache: StepCache | None = None) -> NeutronLookup:
    """For ``directory = neutron``. Sends no request: the first lookup, or ``probe``, sends the first request."""
    settings = read(global_conf)
    return NeutronLookup(make_ports_api(settings), networks_cache=networks_cache, credentials=settings.credentials)
