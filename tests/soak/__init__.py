# SPDX-License-Identifier: Apache-2.0
"""A long run with churn and faults, and an offline check of everything that the instances got.

``churn`` changes the cloud at random, ``history`` records it and every request, ``checker`` proves that no response was
another instance's beyond the bound of the caches, ``shrink`` reduces a failed history, ``trend`` checks memory,
descriptors, threads and connections.
"""
