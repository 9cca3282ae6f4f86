# SPDX-License-Identifier: Apache-2.0
"""A cloud on one machine, to see the programs work and to try a change.

The lab has three networks with the same addresses, 10.1.1.0/24. Two networks belong to two tenants, each behind its own
router. The third network is isolated. Each network has an instance at 10.1.1.2. Routers, DHCP servers and instances are
network namespaces. The rules, the namespace proxies and the agent are the same as in a real cloud. The lookup
``static`` replaces Neutron, and ``metadata_service`` replaces Nova. Both read one YAML file.

All parts are in namespaces with fixed names (``plan``) and in one state directory. So the next lab can find and remove
the remains of an earlier lab.
"""
