# SPDX-License-Identifier: Apache-2.0
"""The exit codes of every verb: 0 done or well, 1 failed or not well, 2 cannot tell or wrong usage."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from metadata_wsgi.cli import exit_codes, main, verbs
from metadata_wsgi.errors import ConfigError, NetnsError, UsageError
from tests.cloud import Cloud

PROGRAM = [sys.executable, '-m', 'metadata_wsgi.cli.main']
VERBS = list(verbs.VERBS)
NEEDS_ROOT = {
    'attach': ['--router-id', 'some-router'], 'detach': ['--all'], 'attached': [], 'adopt': ['--all'],
    'give-back': ['--all'], 'supervise': [], 'watch': [],
}  # fmt: skip
READS_CONFIGURATION = {
    'attach': ['--router-id', 'some-router'], 'detach': ['--all'], 'attached': [], 'keeper': [], 'explain':
    ['--router-id', 'some-router', '10.1.1.2'], 'status': [], 'watch': [],
}  # fmt: skip
as_root = pytest.mark.skipif(os.geteuid() != 0, reason='without root another error comes first: run it as root')


@pytest.fixture
def cloud(tmp_path):
    with Cloud(tmp_path) as made:
        made.conf_file.chmod(0o600)
        yield made


@pytest.mark.parametrize(('codes', 'expected'), [([], 0), ([0, 0], 0), ([0, 2], 2), ([2, 1, 0], 1), ([0, 1], 1)])
def test_not_well_has_precedence_over_cannot_tell(codes, expected):
    assert exit_codes.worst(codes) == expected


@pytest.mark.parametrize('verb', VERBS)
def test_an_unknown_option_is_wrong_usage(verb, capsys):
    with pytest.raises(SystemExit) as exit_:
        main.main([verb, '--no-such-option'])
    assert exit_.value.code == 2
    assert f'usage: metadata-wsgi {verb}' in capsys.readouterr().err


@pytest.mark.parametrize('words', [[], ['no-such-verb']])
def test_no_verb_and_an_unknown_verb_are_wrong_usage(words, capsys):
    with pytest.raises(SystemExit) as exit_:
        main.main(words)
    assert exit_.value.code == 2


@pytest.mark.parametrize('verb', VERBS)
def test_help_of_every_verb_ends_with_0_and_reads_alone(verb, capsys):
    with pytest.raises(SystemExit) as exit_:
        main.main([verb, '--help'])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert '``' not in text
    # A description stands between the usage and the arguments.
    _, description, *_ = text.split('\n\n')
    assert description.rstrip().endswith('.')


@pytest.mark.parametrize(('verb', 'words'), NEEDS_ROOT.items(), ids=NEEDS_ROOT)
def test_without_root_a_verb_that_needs_it_cannot_tell(verb, words, capsys, monkeypatch):
    monkeypatch.setattr(os, 'geteuid', lambda: 65534)
    assert main.main([verb, *words]) == 2
    assert capsys.readouterr().err == (
        f'metadata-wsgi {verb}: only root can enter namespaces and change rules; run it with sudo\n'
    )


@as_root
@pytest.mark.parametrize(('verb', 'words'), READS_CONFIGURATION.items(), ids=READS_CONFIGURATION)
def test_a_configuration_file_that_is_missing_cannot_tell(verb, words, capsys, tmp_path):
    assert main.main([verb, *words, '--config-file', str(tmp_path / 'none.ini')]) == 2
    out, err = capsys.readouterr()
    assert out == ''
    assert err.startswith(f'metadata-wsgi {verb}: config_file: {tmp_path}/none.ini is no file or directory')


@pytest.mark.parametrize('verb', ['check-config', 'show-pipeline'])
def test_a_configuration_that_does_not_load_is_not_well_for_the_verbs_that_check_it(verb, capsys, tmp_path):
    assert main.main([verb, '--config-file', str(tmp_path / 'none.ini')]) == 1
    assert 'is no file or directory' in capsys.readouterr().err


@pytest.mark.parametrize('verb', ['check-config', 'show-pipeline'])
def test_a_configuration_that_works_is_well(verb, capsys, cloud):
    assert main.main([verb, '--config-file', str(cloud.conf_file)]) == 0
    assert capsys.readouterr().err == ''


def test_explain_is_well_for_an_instance_and_not_well_without(capsys, cloud):
    words = ['explain', '--config-file', str(cloud.conf_file), '--router-id', cloud.router_id]
    assert main.main([*words, '10.1.1.2']) == 0
    assert main.main([*words, '10.1.1.99']) == 1


def test_status_without_agent_is_not_well(capsys, tmp_path):
    (tmp_path / 'empty.ini').touch()
    assert main.main(['status', '--state-path', str(tmp_path), '--config-file', str(tmp_path / 'empty.ini')]) == 1
    assert 'nothing listens at' in capsys.readouterr().out


@as_root
@pytest.mark.parametrize('verb', ['attached', 'detach'])
def test_verbs_on_a_host_without_attachments_are_well(verb, capsys, tmp_path):
    words = ['--all'] if verb == 'detach' else []
    assert main.main([verb, *words, '--state-path', str(tmp_path)]) == 0


@as_root
def test_an_unavailable_keeper_is_not_well(capsys, tmp_path):
    (tmp_path / 'keeper').touch()
    assert main.main(['attached', '--state-path', str(tmp_path)]) == 1


@as_root
def test_attach_of_a_missing_namespace_is_not_well(capsys, tmp_path):
    assert main.main(['attach', '--router-id', 'no-such-router', '--state-path', str(tmp_path)]) == 1


@as_root
def test_adopt_without_haproxy_is_well_and_of_an_unknown_id_is_not(capsys, tmp_path):
    assert main.main(['adopt', '--all', '--state-path', str(tmp_path)]) == 0
    assert main.main(['give-back', '--all', '--state-path', str(tmp_path)]) == 0
    assert main.main(['adopt', '--id', 'no-such-id', '--state-path', str(tmp_path)]) == 1


@as_root
def test_a_list_that_cannot_be_read_is_wrong_usage(capsys, tmp_path):
    assert main.main(['attach', '--file', str(tmp_path / 'none'), '--state-path', str(tmp_path)]) == 2
    assert 'cannot be read' in capsys.readouterr().err


def test_a_second_keeper_is_refused(tmp_path):
    (tmp_path / 'empty.ini').touch()
    words = ['keeper', '--state-path', str(tmp_path), '--config-file', str(tmp_path / 'empty.ini')]
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as running:
        running.bind(str(tmp_path / 'keeper'))
        running.listen()
        done = subprocess.run([*PROGRAM, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, 'another keeper is running' in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize('shell', ['bash', 'zsh'])
def test_completion_is_well(shell, capsys):
    assert main.main(['completion', shell]) == 0
    assert 'metadata-wsgi' in capsys.readouterr().out


def test_lab_down_without_a_lab_is_well(capsys, monkeypatch):
    from metadata_wsgi.cli import lab

    monkeypatch.setattr(lab.unprivileged, 'needed', lambda: False)
    monkeypatch.setattr(lab.build, 'down', lambda report: report('No lab is up'))
    assert main.main(['lab', 'down']) == 0


@pytest.mark.parametrize(
    ('error', 'code', 'message'),
    [
        (NetnsError('no rule'), 1, 'metadata-wsgi completion: no rule'),
        (UsageError('not so'), 2, 'metadata-wsgi completion: not so'),
        (ConfigError('no value'), 2, 'metadata-wsgi completion: no value'),
        (PermissionError(13, 'Permission denied', '/x'), 2, "Permission denied: '/x'"),
        (KeyError('x'), 2, 'unexpected error, please report it with the lines above: KeyError'),
        (KeyboardInterrupt(), 130, ''),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_every_error_of_a_verb_has_an_exit_code_and_a_message(error, code, message, monkeypatch, capsys):
    from metadata_wsgi.cli import completion

    def fail(shell):
        raise error

    monkeypatch.setattr(completion, 'script', fail)
    assert main.main(['completion', 'bash']) == code
    assert message in capsys.readouterr().err


def test_a_closed_pipe_cannot_tell_and_prints_no_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run([*PROGRAM, 'completion', 'bash'], stdout=writer, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(writer)
    assert (done.stderr, done.returncode) == (b'', 2)


def test_the_page_of_commands_has_every_verb_and_exit_code():
    page = (Path(__file__).parents[3] / 'doc' / 'commands.md').read_text()
    assert [verb for verb in VERBS if f'`{verb}`' not in page] == []
    for code in (0, 1, 2, 130):
        assert f'| {code} |' in page
