# SPDX-License-Identifier: Apache-2.0
"""Our namespace proxy with Neutron's agent, and Neutron's haproxy with our agent."""
