# SPDX-License-Identifier: Apache-2.0
"""One CA file for the TLS connections to Keystone, Neutron and Nova, as in Neutron's metadata agent."""

from __future__ import annotations

from oslo_config import cfg

OPTS = [
    cfg.StrOpt(
        'auth_ca_cert',
        help='PEM file with the CA certificates for the connections to Keystone, Neutron and Nova. '
        'Default: the CA certificates of this machine.',
    ),
]
