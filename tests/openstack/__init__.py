# SPDX-License-Identifier: Apache-2.0
"""Tests with a real Keystone, Neutron and Nova metadata API on loopback (``tox -e openstack``).

``install`` puts them into a virtual environment, ``services`` configures and runs them, ``seed`` fills them. All
files are in ``METADATA_WSGI_OPENSTACK_DIR`` (``~/.cache/metadata_wsgi/openstack``); the next run uses them again.
``METADATA_WSGI_OPENSTACK_PORT`` is the first of their three ports (18500).

``python -m tests.openstack`` starts them by hand and keeps them running until it is interrupted.
"""
