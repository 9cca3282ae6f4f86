# SPDX-License-Identifier: Apache-2.0
"""The alert rules: promtool's own check and tests, and that each alert has its section in the runbooks."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from metadata_wsgi import instruments
from tests.monitoring.monitored_cloud import ROOT, RULES, metric_names, program

TESTS = Path(__file__).parent / 'metadata_wsgi.test.yml'
ALERTS = [rule for group in yaml.safe_load(RULES.read_text())['groups'] for rule in group['rules']]
KNOWN = {instrument.name for instrument in instruments.ALL}


@pytest.fixture
def promtool():
    path = program('promtool')
    if not path:
        pytest.skip('promtool is not installed (package prometheus; make test unpacks it)')
    return lambda *words: subprocess.run([path, *words], capture_output=True, text=True, check=False)


def test_promtool_accepts_the_alert_rules(promtool):
    done = promtool('check', 'rules', str(RULES))
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_tests_of_the_alert_rules(promtool, tmp_path):
    path = tmp_path / 'test.yml'
    path.write_text(TESTS.read_text().replace('[RULES]', f'[{RULES}]'))
    done = promtool('test', 'rules', str(path))
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_tested_firing_and_not_firing():
    cases = [case for test in yaml.safe_load(TESTS.read_text())['tests'] for case in test['alert_rule_test']]
    names = {rule['alert'] for rule in ALERTS}
    assert {case['alertname'] for case in cases if case['exp_alerts']} == names
    assert {case['alertname'] for case in cases if not case['exp_alerts']} == names


@pytest.mark.parametrize('rule', ALERTS, ids=lambda rule: rule['alert'])
def test_an_alert_has_a_severity_texts_and_a_section_in_the_runbooks(rule):
    assert rule['labels']['severity'] in ('critical', 'warning')
    assert set(rule['annotations']) == {'summary', 'description', 'runbook'}
    path, _, anchor = rule['annotations']['runbook'].partition('#')
    assert anchor == rule['alert'].lower()
    section = (ROOT / path).read_text().partition(f'\n## {rule["alert"]}\n')[2].partition('\n## ')[0]
    assert re.search(r'^    \S', section, re.MULTILINE), 'a command to run'


def test_the_alert_rules_use_metrics_that_exist():
    assert metric_names('\n'.join(rule['expr'] for rule in ALERTS)) <= KNOWN
