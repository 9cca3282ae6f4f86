# SPDX-License-Identifier: Apache-2.0
"""A real Keystone, Neutron and Nova metadata API on loopback, and the path to them (``tox -e openstack``).

``install`` puts them into a virtual environment of their own, ``services`` configures and runs them, ``seed`` fills
them. All of it lies in ``METADATA_WSGI_OPENSTACK_DIR`` (``~/.cache/metadata_wsgi/openstack``) and is used again by
the next run; ``METADATA_WSGI_OPENSTACK_PORT`` is the first of their three ports (18500).

``python -m tests.openstack`` starts them by hand and leaves them running until it is interrupted.
"""
