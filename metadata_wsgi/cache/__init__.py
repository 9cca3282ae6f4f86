# SPDX-License-Identifier: Apache-2.0
"""What was found out and may be said again for a while, and never for longer.

Rule 1: every entry carries its own end; what is past it is not there, whether or not it was removed.
Rule 2: faults are not remembered.
Rule 3: this room knows no request and no meaning: keys and values are its callers'.

``own`` is the memory of a worker, a dict: a hit costs a microsecond. ``shared`` stands behind it where a URL
names one, for the workers of a host and the hosts of a cloud. ``recall`` asks once for many who want to
know the same, and says the old answer while nobody can be asked.
"""
