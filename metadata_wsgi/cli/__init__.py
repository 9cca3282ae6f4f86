# SPDX-License-Identifier: Apache-2.0
"""The programs: ``quantum-metadata-agent``, ``neutron-metadata-agent-wsgi``, ``quantum-ns-metadata-proxy`` and
``metadata-wsgi``.

A command reads its options, calls the other packages, prints, and returns an exit code: 0 done, 1 failed (one
sentence on standard error says why), 2 wrong command line.
"""
