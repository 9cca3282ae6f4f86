# SPDX-License-Identifier: Apache-2.0
"""Faults injected into a whole host while instances boot; see ``python -m tests.chaos --help`` and doc/chaos.md.

``topology`` makes the namespaces, ``host`` starts and supervises the programs, ``units`` does what systemd does,
``installation`` replaces the programs by another version, ``services`` are Keystone, Neutron and Nova with faults on
request, ``load`` are the booting clients, ``setups`` are the kinds of hosts, ``faults`` is the table of faults,
``experiment`` injects one and measures, ``report`` writes the table.
"""
