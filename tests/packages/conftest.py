# SPDX-License-Identifier: Apache-2.0
"""Packages that ``packages/build.py`` has made, and a fresh Debian for each suite."""

import os
import shutil
import subprocess
import uuid
from pathlib import Path

import pytest

from tests.netns.systemd_machine import BootError

from . import debian

SUITES = ('bookworm', 'trixie')


@pytest.fixture(scope='session')
def packages():
    """(the deb of the former version, that of this version): tox -e packages builds them and sets the variables."""
    directories = [os.environ.get(f'METADATA_WSGI_{name}') for name in ('FORMER_PACKAGES', 'PACKAGES')]
    if not all(directories):
        pytest.skip('no packages were built: tox -e packages')
    why = debian.missing_requirements()
    if why:
        pytest.skip(why)
    made = [sorted(Path(directory).glob('*.deb')) for directory in directories]
    assert [len(debs) for debs in made] == [1, 1], made
    return made[0][0], made[1][0]


@pytest.fixture(params=SUITES)
def suite(request):
    return request.param


@pytest.fixture
def fresh_debian(packages, suite, tmp_path):
    """The directory of a fresh Debian that does not run; the packages are in /root."""
    directory = debian.make_debian(suite, tmp_path / 'debian')
    try:
        put_packages(packages, directory)
        yield directory
    finally:
        debian.remove_debian(directory)


@pytest.fixture
def machine(packages, suite, tmp_path):
    """A running Debian; the packages are in /root."""
    network = f'host-{uuid.uuid4()}'
    subprocess.run(['ip', 'netns', 'add', network], check=True)
    made = debian.DebianMachine(suite, tmp_path, network)
    try:
        put_packages(packages, made.root)
        subprocess.run(['ip', '-n', network, 'link', 'set', 'lo', 'up'], check=True)
        try:
            yield made.start()
        except BootError as error:
            pytest.skip(f'no systemd could be booted here: {error}')
    finally:
        made.stop()
        subprocess.run(['ip', 'netns', 'delete', network], check=True)
        debian.remove_debian(made.root)


def put_packages(packages, directory):
    for package in packages:
        shutil.copy(package, directory / 'root')
