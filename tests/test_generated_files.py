# SPDX-License-Identifier: Apache-2.0
"""Completion scripts and man pages: generated from the parsers, and accepted by the programs that read them."""

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from metadata_wsgi.cli import completion, verbs

ROOT = Path(__file__).parent.parent
VERBS = list(verbs.VERBS)


@pytest.fixture(scope='module')
def pages(tmp_path_factory):
    """The directory of the man pages, written by the command that a package's build calls."""
    directory = tmp_path_factory.mktemp('man') / 'man8'
    argv = [sys.executable, '-W', 'ignore', ROOT / 'doc' / 'man_pages.py', directory]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, env={**os.environ, 'SOURCE_DATE_EPOCH': '1764201600'}
    )
    assert (done.returncode, done.stderr) == (0, '')
    return directory


def test_every_program_has_a_man_page(pages):
    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    programs = {Path(name).name for name in setup['options']['scripts'].split()} | {'metadata-wsgi-haproxy'}
    assert {path.name for path in pages.iterdir()} == {f'{name}.8' for name in programs}


def test_the_man_page_has_every_verb_and_exit_code_and_the_date_of_the_build(pages):
    text = (pages / 'metadata-wsgi.8').read_text()
    assert '"2025\\-11\\-27"' in text.splitlines()[0]
    for verb in VERBS:
        assert '.SS \\fBmetadata\\-wsgi ' + verb.replace('-', '\\-') + '\\fR' in text
    assert 'cannot tell' in text


def test_no_man_page_has_a_path_of_the_machine_that_built_it(pages):
    for path in pages.iterdir():
        text = path.read_text().replace('\\-', '-')
        assert f'{sys.prefix}/bin' not in text, path
        assert str(ROOT) not in text, path


@pytest.mark.skipif(not shutil.which('groff'), reason='needs groff')
def test_groff_formats_every_man_page_without_a_warning(pages):
    for path in pages.iterdir():
        done = subprocess.run(
            ['groff', '-man', '-Tutf8', '-ww', '-Kutf8', path], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, ''), path
        assert '``' not in done.stdout


@pytest.fixture
def namespaces(tmp_path):
    """A directory like /run/netns."""
    directory = tmp_path / 'netns'
    directory.mkdir()
    for name in ('qrouter-1111', 'qrouter-2222', 'qdhcp-3333', 'other'):
        (directory / name).touch()
    return directory


def completed(line, namespaces):
    """What bash offers for the last word of a command line."""
    script = completion.script('bash').replace('/run/netns', str(namespaces))
    words = line.split(' ')
    function = re.search(r'^complete .*-F (\w+) metadata-wsgi$', script, re.MULTILINE)[1]
    code = f'{script}\nCOMP_WORDS=({" ".join(repr(word) for word in words)}); COMP_CWORD={len(words) - 1}\n'
    code += f'{function} && printf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(['bash', '--norc', '-c', code], capture_output=True, text=True, check=False)
    assert done.stderr == ''
    return done.stdout.split()


@pytest.mark.skipif(not shutil.which('bash'), reason='needs bash')
@pytest.mark.parametrize(
    ('line', 'expected'),
    [
        ('metadata-wsgi att', {'attach', 'attached'}),
        ('metadata-wsgi attached --for', {'--format'}),
        ('metadata-wsgi attached -f ', {'table', 'json', 'yaml', 'value', 'csv'}),
        ('metadata-wsgi show-pipeline -f s', {'svg'}),
        ('metadata-wsgi attach --mode ', {'shared', 'one_hop', 'process'}),
        ('metadata-wsgi attach --router-id ', {'1111', '2222'}),
        ('metadata-wsgi attach --router-id 2', {'2222'}),
        ('metadata-wsgi explain --network-id ', {'3333'}),
        ('metadata-wsgi status --config-file /etc/host', {'/etc/hosts', '/etc/hostname', '/etc/host.conf'}),
    ],
)
def test_bash_completes_verbs_options_choices_ids_and_files(line, expected, namespaces):
    offered = {*completed(line, namespaces)}
    assert offered & expected if 'config-file' in line else offered == expected


@pytest.mark.skipif(not shutil.which('zsh'), reason='needs zsh')
def test_zsh_accepts_the_completion_script():
    done = subprocess.run(
        ['zsh', '-f', '-n'], input=completion.script('zsh'), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, '')


def test_zsh_completion_names_every_verb():
    script = completion.script('zsh')
    assert script.startswith('#compdef metadata-wsgi')
    assert max(map(len, re.findall(r'^    [a-z-]+:.*$', script, re.MULTILINE))) < 120
    assert [verb for verb in VERBS if f'\n    {verb}:' not in script] == []
