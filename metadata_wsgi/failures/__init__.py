# SPDX-License-Identifier: Apache-2.0
"""Recent failures of each worker: for ``status`` and ``report``."""
