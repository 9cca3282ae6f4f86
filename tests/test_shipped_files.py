# SPDX-License-Identifier: Apache-2.0
"""The files beside the code can be loaded and agree with it."""

import configparser
import os
import re
import signal
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


SCRIPTS = ROOT / 'packages' / 'scripts'
SLEEP_IN = "import os, sys, time; os.chroot(sys.argv[1]); print('there', flush=True); time.sleep(300)"


@pytest.mark.skipif(os.geteuid() != 0, reason='needs root')
def test_the_removal_of_the_package_ends_its_programs_on_the_host_and_not_those_in_containers(tmp_path):
    """A container made with packages/kolla has the same path, and the host sees its processes."""
    text = (SCRIPTS / 'preremove.sh').read_text()
    loop = text[text.index('root=$(stat') : text.index('done\n') + len('done\n')]
    programs = [
        subprocess.Popen(
            [f'{tmp_path}/bin/python3', '-c', SLEEP_IN, root], executable=sys.executable, stdout=subprocess.PIPE
        )
        for root in ('/', tmp_path)
    ]
    on_host, in_container = programs
    try:
        assert [program.stdout.readline() for program in programs] == [b'there\n'] * 2
        subprocess.run(['sh', '-euc', loop.replace('/usr/lib/metadata-wsgi', str(tmp_path))], check=True)
        assert on_host.wait(20) == -signal.SIGTERM
        with pytest.raises(subprocess.TimeoutExpired):
            in_container.wait(0.5)
    finally:
        for program in programs:
            program.kill()
            program.wait()
            program.stdout.close()


OLD_SYSTEMCTL = """#!/bin/sh
case "$*" in
*--kill-whom*) echo "unrecognized option '--kill-whom=main'" >&2; exit 1 ;;
kill*) echo "$*" >> "$0.log" ;;
*show*) echo '2 workers serve, version 1.1' ;;
esac
"""


def test_an_upgrade_replaces_a_service_without_a_restart_also_with_systemd_before_252(tmp_path):
    """Debian 11 and Ubuntu 22.04: their systemctl has only the option --kill-who."""
    text = (SCRIPTS / 'postinstall.sh').read_text()
    function = text[text.index('replace() {') : text.index('# One after the other')]
    for name, program in (('systemctl', OLD_SYSTEMCTL), ('sleep', '#!/bin/sh\n')):
        (tmp_path / name).write_text(program)
        (tmp_path / name).chmod(0o755)
    path = f'{tmp_path}:{os.environ["PATH"]}'
    code = f'version=1.1; {function}\nreplace quantum-metadata-agent'
    done = subprocess.run(
        ['sh', '-euc', code], env={'PATH': path}, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, '')
    log = (tmp_path / 'systemctl.log').read_text()
    assert log == 'kill --kill-who=main --signal=USR1 quantum-metadata-agent.service\n'
