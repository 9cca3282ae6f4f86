# SPDX-License-Identifier: Apache-2.0
"""What can stand in Nova's place: the metadata API of a small cloud, from the inventory.

It answers as Nova's does (measured against nova 34.0.0): the same paths, listings, statuses and content types,
so that a guest cannot tell which of the two is there, except where Nova answers 500 to a path that does not
exist: that is 404 here.

One file, one noun: ``authentication`` believes a request or not, ``ec2`` and ``openstack`` are the two trees as
pure functions of an instance, ``password`` is the one thing a guest may write, ``app`` puts them together.
"""
