# SPDX-License-Identifier: Apache-2.0
"""A metadata API for small clouds. It reads the inventory and can replace Nova's metadata API.

Paths, listings, status codes and content types are those of Nova (compared with nova 34.0.0). One exception: for some
paths that do not exist, Nova responds 500 and this API 404.

``authentication`` checks the signed headers. ``ec2`` and ``openstack`` are the two trees, as pure functions of an
instance. ``password`` stores the password, the only value that an instance may write. ``app`` is the WSGI app.
"""
