# SPDX-License-Identifier: Apache-2.0
import os
import shutil

import pytest

from .worlds import World


def pytest_collection_modifyitems(items):
    for item in items:
        if 'netns' in item.keywords and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason='makes network namespaces: run it as root'))


@pytest.fixture
def world():
    world = World()
    try:
        world.make()
        yield world
    finally:
        world.remove()


@pytest.fixture(params=['iptables-nft', 'iptables-legacy'])
def program(request):
    if not shutil.which(request.param):
        pytest.skip(f'{request.param} is not installed')
    return request.param
