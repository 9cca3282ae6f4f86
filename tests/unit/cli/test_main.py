# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys
from importlib.metadata import version

import pytest

from metadata_wsgi.cli import healthcheck, main, verbs
from metadata_wsgi.filters.optional import healthcheck as healthcheck_filter

MODULES = sorted({module for module, _ in verbs.VERBS.values()})
CLOUD = {'keystoneauth1', 'requests', 'urllib3'}
SERVER = {'gunicorn', 'gevent'}
CONFIGURATION = {'oslo_config', 'netaddr'}
SLOW = CLOUD | SERVER | CONFIGURATION | {
    'oslo_log.log', 'pyroute2', 'webob', 'paste', 'yaml', 'dogpile', 'limits', 'prometheus_client', 'shtab', 'asyncio',
    'inotify_simple', 'email',
}  # fmt: skip
"""Libraries that take more than 10 ms to import."""
# oslo.config imports them too.
BY_OSLO_CONFIG = CONFIGURATION | {'email', 'yaml', 'asyncio'}
NEEDED = {
    '--help': set(), '--version': {'email'}, 'no-such-verb': set(),
    'lab --help': {'yaml', 'pyroute2'} | BY_OSLO_CONFIG | {'paste'}, 'completion --help': set(), 'adopt --help': set(),
    'attached': BY_OSLO_CONFIG, 'attach --router-id no-such-router': BY_OSLO_CONFIG,
    'detach --router-id no-such-router': BY_OSLO_CONFIG,
    'status': BY_OSLO_CONFIG, 'keeper --help': BY_OSLO_CONFIG, 'watch --help': BY_OSLO_CONFIG | {'inotify_simple'},
}  # fmt: skip
"""Command line: what it may import of SLOW."""


@pytest.mark.parametrize('module', MODULES)
def test_a_module_declares_the_verbs_that_the_table_has(module):
    parsers = main._parsers(main.make_parser([module]))
    ours = {verb for verb, (name, _) in verbs.VERBS.items() if name == module}
    assert {verb for verb, parser in parsers.items() if parser.get_default('run')} == ours
    assert set(parsers) == set(verbs.VERBS)


def test_the_version(capsys):
    with pytest.raises(SystemExit) as exit_:
        main.main(['--version'])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f'metadata-wsgi {version("metadata_wsgi")}\n'


def test_the_help_has_no_markup(capsys):
    with pytest.raises(SystemExit):
        main.main(['--help'])
    help_text = capsys.readouterr().out
    assert '``' not in help_text
    assert all(f'    {verb}' in help_text for verb in verbs.VERBS)


@pytest.mark.parametrize('line', NEEDED)
def test_a_verb_imports_only_the_slow_libraries_that_it_needs(line, tmp_path):
    """A verb starts in 0.15 s where it imports none in vain. The names of modules are asserted, not a time."""
    words = line.split()
    if line in ('attached', 'status') or line.startswith(('attach ', 'detach')):
        words += ['--state-path', str(tmp_path)]
    code = (
        'import sys\n'
        f'before = set(sys.modules)\n'
        'from metadata_wsgi.cli import main\n'
        'try:\n'
        f'    main.main({words!r})\n'
        'except SystemExit: pass\n'
        f'print(*sorted((set(sys.modules) - before) & {SLOW!r}), file=sys.stderr)\n'
    )
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, check=True)
    assert set(done.stderr.splitlines()[-1].split()) <= NEEDED[line]


def test_the_path_of_the_healthcheck_is_that_of_its_filter():
    (default,) = (opt.default for opt in healthcheck_filter.OPTS if opt.name == 'path')
    assert default == healthcheck.PATH


def test_results_and_errors_keep_their_order_in_one_pipe(tmp_path):
    """A buffered result would follow an error that was printed after it."""
    paste = tmp_path / 'api-paste.ini'
    paste.write_text('[pipeline:agent]\npipeline = gone\n')
    done = subprocess.run(
        [sys.executable, '-m', 'metadata_wsgi.cli.main', 'check-config', '--paste-file', str(paste)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        env={name: value for name, value in os.environ.items() if name != 'PYTHONUNBUFFERED'},
    )  # fmt: skip
    result, error = done.stdout.find('configuration'), done.stdout.find('gone')
    assert 0 <= result < error, done.stdout
