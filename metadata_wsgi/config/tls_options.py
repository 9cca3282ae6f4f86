# SPDX-License-Identifier: Apache-2.0
"""Whom we believe over TLS: one certificate authority for Keystone, Quantum and Nova, as Neutron's agent has it."""

from __future__ import annotations

from oslo_config import cfg

OPTS = [
    cfg.StrOpt(
        'auth_ca_cert',
        help='PEM file of the CA certificates that those of Keystone, Quantum and Nova are checked against; '
        'by default those of this machine.',
    ),
]
