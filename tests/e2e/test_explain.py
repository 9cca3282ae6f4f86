# SPDX-License-Identifier: Apache-2.0
"""The output of ``metadata-wsgi explain``."""

import json
import re
import subprocess

import pytest

from tests.e2e.conftest import BIN


@pytest.fixture
def explain(cloud):
    """A function: (exit code, lines without times) of ``metadata-wsgi explain``."""

    def run(*words):
        argv = [BIN / 'metadata-wsgi', 'explain', '--config-file', cloud.conf_file, *words]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        return done.returncode, [re.sub(r' +\(\d+\.\d ms\)$', '', line) for line in done.stdout.splitlines()]

    return run


def test_each_filter_shows_what_it_wrote(explain, cloud):
    code, lines = explain('--router-id=router-a', '10.1.1.2')
    assert code == 0
    assert lines[:7] == [
        'catch_errors  -',
        lines[1],
        'peer_credentials -',
        lines[3],
        'header_source 10.1.1.2 behind router router-a',
        'instance      instance-a of project project-a, port port-a',
        'signature     1 signature of instance-a',
    ]
    assert re.fullmatch(r'request_id    req-[0-9a-f-]{36}', lines[1])
    assert re.fullmatch(r'deadline      \d\.\d s remaining', lines[3])
    assert lines[7] == 'request       GET /openstack/latest/meta_data.json'
    assert '              x-instance-id: instance-a' in lines
    assert any(re.fullmatch(r' +x-instance-id-signature: [0-9a-f]{6}\.\.\. \(masked\)', line) for line in lines)
    assert lines[-1] == 'not sent; use --send to send it'
    assert cloud.nova.seen == []


def test_the_trace_ends_where_no_instance_is_found(explain):
    code, lines = explain('--router-id=router-a', '10.1.1.3')
    assert code == 1
    assert 'header_source 10.1.1.3 behind router router-a' in lines
    assert not any(line.startswith('instance') for line in lines)
    assert any(line.startswith('response      404') for line in lines)


def test_with_send_the_response_of_nova_is_shown(explain, cloud):
    code, lines = explain('--network-id=network-c', '10.1.1.2', '--send')
    assert (code, len(cloud.nova.seen)) == (0, 1)
    assert 'instance      instance-c of project project-c, port port-c' in lines
    assert any(line.startswith('response      200') for line in lines)


def explain_json(cloud, *words):
    argv = [BIN / 'metadata-wsgi', 'explain', '-f', 'json', '--config-file', cloud.conf_file, *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.returncode, {row['step']: row for row in json.loads(done.stdout)}


def test_format_json_has_a_row_for_each_step_and_masks_the_signature(cloud):
    code, steps = explain_json(cloud, '--router-id=router-a', '10.1.1.2')
    assert code == 0
    assert list(steps) == [
        'catch_errors', 'request_id', 'peer_credentials', 'deadline', 'header_source', 'instance', 'signature',
        'request',
    ]  # fmt: skip
    assert steps['instance']['text'] == 'instance-a of project project-a, port port-a'
    assert steps['instance']['ms'] >= 0
    assert 'x-instance-id: instance-a' in steps['request']['details']
    (signature,) = (line for line in steps['request']['details'] if line.startswith('x-instance-id-signature'))
    assert signature.endswith('... (masked)')


def test_format_json_ends_with_the_response_where_no_instance_is_found(cloud):
    code, steps = explain_json(cloud, '--router-id=router-a', '10.1.1.3')
    assert (code, list(steps)[-1]) == (1, 'response')
    assert steps['response']['text'].startswith('404')


def test_escape_sequences_in_user_data_do_not_reach_the_terminal(explain, cloud):
    def user_data(environ, start_response):
        start_response('200 OK', [('X-Tenant', 'a\x9bb')])
        return [b'#!/bin/sh\n\x1b[2Jclear\x07\n']

    cloud.server.set_app(user_data)
    _, lines = explain('--router-id=router-a', '10.1.1.2', '--send', '--path', '/openstack/latest/user_data')
    assert '#!/bin/sh' in lines
    assert '?[2Jclear?' in lines
    assert all(line.isprintable() for line in lines)
