# SPDX-License-Identifier: Apache-2.0
"""The clients that guests run, in a guest's namespace, through the real path, with faults before Nova and Quantum."""
