# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
from importlib.metadata import version

import pytest

from metadata_wsgi.cli import main


@pytest.mark.parametrize('module', main.VERBS)
def test_a_module_declares_the_verbs_that_the_table_has(module):
    parser = main.make_parser([module])
    (verbs,) = (action.choices for action in parser._actions if action.dest == 'verb')
    assert tuple(verbs) == main.VERBS[module]


def test_the_version(capsys):
    with pytest.raises(SystemExit):
        main.main(['--version'])
    assert capsys.readouterr().out == f'metadata-wsgi {version("metadata_wsgi")}\n'


def test_the_help_has_no_markup(capsys):
    with pytest.raises(SystemExit):
        main.main(['--help'])
    help_text = capsys.readouterr().out
    assert '``' not in help_text
    assert all(verb in help_text for verbs in main.VERBS.values() for verb in verbs)


def test_the_program_itself_imports_none_of_its_verbs():
    script = 'import metadata_wsgi.cli.main, sys; print({"oslo_config", "gunicorn"} & set(sys.modules))'
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=True)
    assert done.stdout == 'set()\n'
