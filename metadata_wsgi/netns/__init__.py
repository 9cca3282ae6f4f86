# SPDX-License-Identifier: Apache-2.0
"""Everything that touches the kernel: namespaces, addresses, packet rules, processes.

Rule 1: this room needs privileges and parses nothing that a guest sends. What parses guests' bytes
(webob, paste, the filters) is never imported here, and imports nothing of this room.
Rule 2: what is decided is pure (``rules``, the difference in ``iptables``); what is done goes through
a ``Runner`` or netlink, and fails with NetnsError in the words of whoever refused.
Rule 3: every act can be repeated. What is right is kept, what is stale is replaced, what is not ours
is left alone.

===============  =============================================================================
``run``          run a program, in a namespace if need be
``netns``        which namespaces there are; call a function inside one
``rules``        the packet rules of a router, as data (pure)
``iptables``     bring a namespace's rules to what ``rules`` says, or out of it
``pattern``      the same for many namespaces at once: laid once, and copied
``ruleset``      all rules of a namespace as the kernel has them
``netfilter``    which kinds of iptables have anything in a namespace
``address``      169.254.169.254 on the interface of a DHCP namespace
``links``        the interfaces of a namespace, and fe80::a9fe:a9fe on them
``link_local``   which of them get it, and what to do where somebody else has it
``process``      the proxy's process: adopt, start, end; pid files as in Grizzly
``place``        what can be attached, and by whom it can be served (pure)
``attachment``   all of it in the right order, for one router or network
``turn``         one at a time: no verb, and not watch, sees what another is half way through
===============  =============================================================================
"""
