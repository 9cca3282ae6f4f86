# SPDX-License-Identifier: Apache-2.0
"""All code that changes the kernel's state: namespaces, addresses, packet rules, processes.

Rule 1: this package needs privileges, so it parses no data from an instance. It imports no code that parses requests
(webob, paste, the filters), and such code does not import this package.
Rule 2: pure functions make the decisions (``rules``, ``iptables.difference``). A ``Runner`` or netlink makes the
changes. If a change fails, NetnsError has the message of the program or the kernel.
Rule 3: every operation is idempotent. Correct state is kept, stale state is replaced, state of other programs is not
changed.

=====================  ======================================================================
``attach``             all steps in the right order, for one router or network
``mode_change``        change the listening process: a process of the target, or the keeper
``proxy_command``      the command line of a namespace proxy
``attachment_status``  the attached routers and networks of this host, and their problems
``target``             routers and networks, modes, keeper entries (pure)
``namespaces``         list namespaces; call a function inside one
``namespace_events``   wait until a namespace is added or removed (inotify)
``rtnetlink``          a netlink connection in a namespace
``rules``              the packet rules of a router, as data (pure)
``iptables``           add, replace and remove the rules of one namespace
``ruleset_template``   the rules of many namespaces: create them once and copy them
``dhcp_address``       169.254.169.254 on the interface of a DHCP namespace
``interface_state``    the interfaces of a namespace, and fe80::a9fe:a9fe on them
``link_local``         which interfaces get fe80::a9fe:a9fe; duplicate address detection
``proxy_process``      start, adopt and stop a namespace proxy; pid files as in Grizzly
``process_exits``      notice that a namespace proxy has ended
``haproxy``            take over the sockets of Neutron's haproxies; start haproxy again
``runner``             run a program, in a namespace if needed
``host_lock``          one attach or detach at a time on a host
``neutron_lock``       the lock that Neutron's agents hold while they change rules
=====================  ======================================================================
"""
