# SPDX-License-Identifier: Apache-2.0
"""First on PYTHONPATH this hides the real module, as where it is not installed."""

raise ImportError('hidden by a test')
