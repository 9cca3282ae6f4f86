# SPDX-License-Identifier: Apache-2.0
"""Metadata clients (cloud-init, curl and others) in a guest, through the real path, with injected faults."""
