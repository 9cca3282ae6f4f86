# SPDX-License-Identifier: Apache-2.0
"""How the programs log. Each test runs in a process of its own, because logging is set up once for a process."""

import json
import subprocess
import sys

import pytest

ID = 'req-1b4e28ba-2fa1-11d2-883f-0016d3cca427'
LINES = f"""
from metadata_wsgi.pipeline import request_id
log = logging.getLogger('metadata_wsgi.test')
log.warning('about no %s', 'request')
request_id.CURRENT.set({ID!r})
log.warning('about a %s', 'request')
"""
OTHER_PROGRAM = """
import logging
from metadata_wsgi.cli import log_output
log_output.set_up(
    [logging.StreamHandler()], text_format='%(levelname)s [r1 %(request_id)s] %(message)s', level=logging.INFO, OPTIONS
)
"""
AGENT = """
import logging
from oslo_config import cfg
from oslo_log import log as oslo_log
from metadata_wsgi.cli import log_output
conf = cfg.ConfigOpts()
oslo_log.register_options(conf)
conf([], default_config_files=[], default_config_dirs=[])
conf.set_override('use_stderr', True)
conf.set_override('use_json', USE_JSON)
log_output.set_up_oslo_log(conf)
"""


def log_of(code):
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code + LINES], capture_output=True, text=True, check=True
    )
    return done.stderr.splitlines()


def test_a_text_line_has_the_request_id():
    assert log_of(OTHER_PROGRAM.replace('OPTIONS', '')) == [
        'WARNING [r1 -] about no request',
        f'WARNING [r1 {ID}] about a request',
    ]


def test_a_text_line_of_the_agent_has_the_request_id_where_oslo_log_has_it():
    first, second = log_of(AGENT.replace('USE_JSON', 'False'))
    assert first.endswith(' WARNING metadata_wsgi.test [-] about no request')
    assert second.endswith(f' WARNING metadata_wsgi.test [ {ID} - - - - - -] about a request')


@pytest.mark.parametrize(
    'code',
    [OTHER_PROGRAM.replace('OPTIONS', 'use_json=True'), AGENT.replace('USE_JSON', 'True')],
    ids=['other', 'agent'],
)
def test_a_json_line_has_the_request_id_in_its_context(code):
    first, second = map(json.loads, log_of(code))
    assert (first['message'], first['context']) == ('about no request', {})
    assert (second['message'], second['context']) == ('about a request', {'request_id': ID})
    assert second['name'] == 'metadata_wsgi.test'


def test_without_the_python_module_systemd_the_journal_is_standard_error():
    hidden = 'import importlib.util\nimportlib.util.find_spec = lambda name: None\n'
    first, *lines = log_of(hidden + OTHER_PROGRAM.replace('OPTIONS', 'use_journal=True'))
    assert first == (
        'INFO [r1 -] use_journal: the Python module systemd is not installed, so the log goes to standard error'
    )
    assert lines == ['WARNING [r1 -] about no request', f'WARNING [r1 {ID}] about a request']


def test_journal_entries_have_the_request_id_as_a_field():
    """With a fake module systemd.journal: what is sent to the journal is printed."""
    fake = (
        'import sys, types\n'
        'systemd, journal = types.ModuleType("systemd"), types.ModuleType("systemd.journal")\n'
        'systemd.journal = journal\n'
        'systemd.__spec__ = types.SimpleNamespace()\n'
        'journal.send = lambda message, **fields: print(message, fields.get("REQUEST_ID"), file=sys.stderr)\n'
        'sys.modules.update({"systemd": systemd, "systemd.journal": journal})\n'
    )
    lines = log_of(fake + OTHER_PROGRAM.replace('OPTIONS', 'use_journal=True'))
    assert lines == ['about no request None', f'about a request {ID}']
