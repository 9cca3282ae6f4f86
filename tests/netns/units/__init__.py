# SPDX-License-Identifier: Apache-2.0
"""The shipped units of etc/systemd under a running systemd."""
