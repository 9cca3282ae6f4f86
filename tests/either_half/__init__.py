# SPDX-License-Identifier: Apache-2.0
"""Either half of the way stands beside the other half of Neutron's."""
