# SPDX-License-Identifier: Apache-2.0
"""A metadata API for small clouds that can replace Nova's, from the inventory.

Paths, listings, status codes and content types are those of Nova (measured against nova 34.0.0), with one exception:
where Nova answers 500 to a path that does not exist, the response here is 404.

``authentication`` checks the signed headers, ``ec2`` and ``openstack`` are the two trees as pure functions of an
instance, ``password`` stores the one value an instance may write, ``app`` is the WSGI app.
"""
