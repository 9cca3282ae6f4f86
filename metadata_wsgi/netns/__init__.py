# SPDX-License-Identifier: Apache-2.0
"""Everything that changes the kernel's state: namespaces, addresses, packet rules, processes.

Rule 1: this package needs privileges and parses nothing that an instance sends. Code that parses requests (webob,
paste, the filters) is never imported here, and imports nothing from here.
Rule 2: decisions are pure functions (``rules``, the difference in ``iptables``). Changes go through a ``Runner`` or
netlink, and raise NetnsError with the message of the program or the kernel.
Rule 3: every operation is idempotent. Correct state stays, stale state is replaced, foreign state is not touched.

=====================  ======================================================================
``attach``             all steps in the right order, for one router or network
``attachment_status``  what is attached on this host, and what is wrong with it
``target``             routers and networks, modes, keeper entries (pure)
``namespaces``         list namespaces; call a function inside one
``rules``              the packet rules of a router, as data (pure)
``iptables``           add, replace and remove the rules of one namespace
``ruleset_template``   the same for many namespaces: create the rules once and copy them
``dhcp_address``       169.254.169.254 on the interface of a DHCP namespace
``interface_state``    the interfaces of a namespace, and fe80::a9fe:a9fe on them
``link_local``         which interfaces get that address; duplicate address detection
``proxy_process``      start, adopt and stop a namespace proxy; pid files as in Grizzly
``runner``             run a program, in a namespace if needed
``lock``               one attach or detach at a time on a host
=====================  ======================================================================
"""
