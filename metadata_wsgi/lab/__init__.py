# SPDX-License-Identifier: Apache-2.0
"""A cloud on one machine, to see the path work and to try a change on it.

Two tenants whose networks use the same 10.1.1.0/24, each behind a router of its own, and an isolated
network; a guest at 10.1.1.2 in each. Namespaces stand for routers, DHCP servers and guests, as they
do in a real cloud for the first two; the rules, namespace proxies and the agent are the real ones.
Quantum's place is taken by the ``static`` directory, Nova's by ``metadata_app``, both over one YAML file.

Everything of it lives in namespaces whose names ``plan`` lists and in one state directory, so that
whatever a lab left behind, however it ended, can be found and removed by the next one.
"""
