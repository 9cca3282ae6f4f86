# SPDX-License-Identifier: Apache-2.0
"""The section ``defaults`` that Neutron's agents write to the configuration of a haproxy, without its log options."""

DEFAULTS = """
defaults
    mode http
    option dontlognull
    option http-server-close
    option forwardfor
    retries                 3
    timeout http-request    30s
    timeout connect         30s
    timeout client          32s
    timeout server          32s
    timeout http-keep-alive 30s
"""
