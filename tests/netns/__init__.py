# SPDX-License-Identifier: Apache-2.0
"""Tests that make network namespaces (``-m netns``, as root)."""
