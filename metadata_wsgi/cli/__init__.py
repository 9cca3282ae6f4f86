# SPDX-License-Identifier: Apache-2.0
"""The programs: ``quantum-metadata-agent``, ``quantum-ns-metadata-proxy``, ``metadata-wsgi``.

A command reads what the operator said, calls the rooms, prints, and returns an exit code: 0 done,
1 it could not be done (one sentence on standard error says why), 2 the command line is wrong.
"""
