# SPDX-License-Identifier: Apache-2.0
"""The files beside the code can be loaded and agree with it."""

import configparser
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from metadata_wsgi.filters.optional import metrics

ROOT = Path(__file__).parent.parent
PASTE = ROOT / 'etc' / 'api-paste.ini'


@pytest.fixture
def paste():
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(PASTE)
    return parser


def test_every_section_that_a_pipeline_names_exists(paste):
    for section in paste.sections():
        if section.startswith('pipeline:'):
            *filters, app = paste[section]['pipeline'].split()
            assert [name for name in filters if f'filter:{name}' not in paste] == []
            assert f'app:{app}' in paste


def test_every_use_line_names_an_entry_point(paste):
    published = {
        f'egg:metadata_wsgi#{entry.name}'
        for group in ('paste.filter_factory', 'paste.app_factory')
        for entry in entry_points(group=group)
    }
    used = {paste[section]['use'] for section in paste.sections() if 'use' in paste[section]} - {'agent'}
    assert used <= published


def test_every_section_has_a_comment():
    text = PASTE.read_text()
    for section in re.finditer(r'^\[(filter|app|pipeline):', text, re.MULTILINE):
        assert text[: section.start()].rstrip().splitlines()[-1].startswith('#'), text[section.start() :][:40]


def test_the_paste_file_is_installed():
    assert 'etc/metadata_wsgi = etc/api-paste.ini' in (ROOT / 'setup.cfg').read_text()


@pytest.mark.parametrize('program', sorted(path.name for path in (ROOT / 'bin').iterdir()))
def test_a_program_prints_its_help(program):
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', ROOT / 'bin' / program, '--help'], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert 'usage: ' in done.stdout


PROGRAMS = [
    path.relative_to(ROOT)
    for folder in ('metadata_wsgi', 'tests', 'bin', 'examples')
    for path in sorted((ROOT / folder).rglob('*'))
    if path.is_file() and (path.suffix == '.py' or folder == 'bin')
]


@pytest.mark.parametrize('path', PROGRAMS, ids=str)
def test_a_file_starts_with_its_licence(path):
    lines = (ROOT / path).read_text().splitlines()
    assert '# SPDX-License-Identifier: Apache-2.0' in lines[:2]


def test_the_metrics_directory_is_one_that_the_agents_unit_can_write():
    directory = next(opt.default for opt in metrics.OPTS if opt.name == 'directory')
    unit = (ROOT / 'etc' / 'systemd' / 'quantum-metadata-agent.service').read_text()
    (runtime_directories,) = re.findall(r'^RuntimeDirectory=(.*)$', unit, re.MULTILINE)
    assert directory in {f'/run/{name}' for name in runtime_directories.split()}


def test_requirements_of_the_packages_are_those_of_setup_cfg():
    """If this fails, run the command in the first lines of packages/requirements.txt."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / 'setup.cfg')
    lines = (ROOT / 'packages' / 'requirements.txt').read_text().splitlines()
    pinned = {}
    for line in lines:
        if line and line[0].isalnum():
            requirement = Requirement(line.removesuffix(' \\'))
            pinned[canonicalize_name(requirement.name)] = next(iter(requirement.specifier)).version
    for line in parser['options']['install_requires'].splitlines():
        if line and not line.startswith('#'):
            requirement = Requirement(line)
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), line
