# SPDX-License-Identifier: Apache-2.0
"""The fuzzer's targets accept their seeds and the inputs of former findings."""

import pytest

from tests.fuzz import fuzz

PORT = b'"device_id": "d", "device_owner": "compute:", "project_id": "p"'
FINDINGS = [
    ('keeper', b'[' * 50_000),
    ('keeper', b'{"mode": "shared", "namespace": "n", "port": true, "router_id": [], "network_id": "n"}'),
    ('quantum', b'[' * 100_000),
    ('quantum', b'{"ports": [{"network_id": "n", "fixed_ips": [{"ip_address": "05.1.1.2"}], %b}]}' % PORT),
    ('quantum', b'{"ports": ["id"]}'),
    ('quantum', b'{"ports": [{"id": "i", "device_owner": 5}]}'),
    ('quantum', b'{"ports": [{"id": "p"}], "ports_links": [{"rel": "next", "href": "http://["}]}'),
    ('quantum', b'{"ports": [], "ports_links": 5}'),
]  # fmt: skip


@pytest.mark.parametrize('name', fuzz.TARGETS)
def test_seeds(name):
    seeds = fuzz.seeds(name)
    assert seeds
    for data in seeds:
        fuzz.TARGETS[name](data)


@pytest.mark.parametrize(('name', 'data'), FINDINGS)
def test_former_findings(name, data):
    fuzz.TARGETS[name](data)
