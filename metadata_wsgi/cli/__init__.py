# SPDX-License-Identifier: Apache-2.0
"""The programs: ``quantum-metadata-agent``, ``neutron-metadata-agent-wsgi``, ``quantum-ns-metadata-proxy`` and
``metadata-wsgi``.

A verb of ``metadata-wsgi`` reads its options, calls the other packages, prints, and returns an exit code
(``exit_codes``). Verbs that print a list can print it in several formats (``listing``).
"""
