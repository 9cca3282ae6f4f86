# SPDX-License-Identifier: Apache-2.0
"""A cloud on one machine, to see the path work and to try a change on it.

Two tenants whose networks use the same 10.1.1.0/24, each behind a router of its own, and an isolated network; one
instance at 10.1.1.2 in each. Routers, DHCP servers and instances are namespaces, as the first two are in a real cloud.
The rules, the namespace proxies and the agent are the real ones. The ``static`` directory replaces Quantum, and
``metadata_service`` replaces Nova; both read one YAML file.

All of it is in namespaces whose names ``plan`` lists and in one state directory, so that the next lab can find and
remove what an earlier one left, however it ended.
"""
