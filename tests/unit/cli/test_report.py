# SPDX-License-Identifier: Apache-2.0
"""The file of ``report``, its sections, and the table of ``status --failures``. With running programs: tests/e2e."""

import argparse
import os
import stat

import pytest

from metadata_wsgi.cli import main, recent_failures, report
from metadata_wsgi.errors import NetnsError
from metadata_wsgi.failures import shared_memory
from metadata_wsgi.failures.table import FailureTable


def test_the_file_is_for_its_owner_only_and_an_older_one_is_replaced(tmp_path):
    path = tmp_path / 'report.txt'
    path.write_text('older')
    path.chmod(0o666)
    report.replace_file(str(path), 'caf\xe9 \udcff')
    assert path.read_text() == 'caf\xe9 ?'
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ['report.txt']


def test_a_link_in_the_place_of_the_file_is_replaced_and_not_followed(tmp_path):
    (tmp_path / 'precious').write_text('unchanged')
    (tmp_path / 'report.txt').symlink_to(tmp_path / 'precious')
    report.replace_file(str(tmp_path / 'report.txt'), 'text')
    assert (tmp_path / 'precious').read_text() == 'unchanged'
    assert not (tmp_path / 'report.txt').is_symlink()


def test_a_missing_directory_is_an_error_with_exit_code_2(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, 'SECTIONS', ())
    path = tmp_path / 'none' / 'report.txt'
    (tmp_path / 'empty.ini').touch()
    assert main.main(['report', '--config-file', str(tmp_path / 'empty.ini'), '--output', str(path)]) == 2
    assert capsys.readouterr().err == f'metadata-wsgi report: {path} cannot be written: No such file or directory\n'


def test_an_error_in_a_section_does_not_hide_the_others(tmp_path, monkeypatch, capsys):
    def fails(error):
        def section(args):
            yield 'before'
            raise error

        return section

    def control_characters(args):
        return ['a\x1b[2Jb\nc', 'x' * 5000]

    sections = (
        ('One', fails(NetnsError('no such namespace'))), ('Two', fails(PermissionError(13, 'Permission denied'))),
        ('Three', fails(KeyError('bug'))), ('Four', control_characters),
    )  # fmt: skip
    monkeypatch.setattr(report, 'SECTIONS', sections)
    (tmp_path / 'empty.ini').touch()
    assert main.main(['report', '--config-file', str(tmp_path / 'empty.ini'), '--output', '-']) == 0
    _, one, two, three, four = capsys.readouterr().out.split('\n== ')
    assert one == 'One\nbefore\ncannot be read: no such namespace\n'
    assert two == 'Two\nbefore\ncannot be read: [Errno 13] Permission denied\n'
    assert three.startswith('Three\nbefore\ncannot be read, unexpected error:\nTraceback')
    assert four == f'Four\na?[2Jb?c\n{"x" * report.MAX_LINE}\n'


@pytest.mark.parametrize(
    ('command', 'is_ours'),
    [
        ('/usr/bin/python3 /usr/bin/quantum-metadata-agent --config-file /etc/x', True),
        ('/usr/bin/python3 -W ignore /opt/bin/metadata-wsgi keeper', True),
        ('gunicorn: master [quantum-metadata-agent]', True),
        ('gunicorn: worker [quantum-ns-metadata-proxy --shared]', True),
        ('vi /etc/metadata-wsgi/agent.ini', False),
        ('mysql --password=x metadata-wsgi', False),
        ('/usr/bin/python3 /usr/bin/quantum-metadata-agent-of-others', False),
    ],
)
def test_only_command_lines_of_our_programs_are_reported(command, is_ours):
    assert bool(report._PROGRAM.search(command)) is is_ours


@pytest.fixture
def published(monkeypatch):
    """Sets the tables that the workers of the host publish."""
    return lambda *tables: monkeypatch.setattr(shared_memory, 'read_all', lambda: [one.rows() for one in tables])


def failed(**kwargs):
    table = FailureTable(clock=lambda: 1764201600.0)
    table.add(**{'status': 503, 'reason': 'no response from Nova', 'address': '10.1.1.2', **kwargs})
    return table


def test_failures_of_all_workers_are_one_row_for_each_client_and_reason(published, capsys):
    published(failed(kind='router', namespace_id='router-a'), failed(kind='router', namespace_id='router-a'))
    assert main.main(['status', '--failures', '-f', 'csv']) == 0
    assert capsys.readouterr().out.splitlines()[1] == (
        '"2025-11-27T00:00:00Z",2,"router","router-a","10.1.1.2","",503,"","no response from Nova",'
        '"2025-11-27T00:00:00Z"'
    )


def test_without_a_failure_a_sentence_says_so(published, capsys):
    published(FailureTable())
    assert main.main(['status', '--failures']) == 0
    assert capsys.readouterr().out == 'no request has failed since the workers were started\n'


def test_without_a_worker_failures_cannot_be_told(published, capsys):
    published()
    assert main.main(['status', '--failures']) == 2
    assert recent_failures.NO_WORKER in capsys.readouterr().err


@pytest.mark.parametrize(('words', 'column'), [(['--failures', '-c', 'part'], 'part'), (['-c', 'path'], 'path')])
def test_a_column_of_the_other_listing_is_wrong_usage(words, column, published, capsys, tmp_path):
    published(failed())
    (tmp_path / 'empty.ini').touch()
    options = ['--state-path', str(tmp_path), '--config-file', str(tmp_path / 'empty.ini')]
    assert main.main(['status', *options, *words]) == 2
    assert f'there is no column {column} here: choose of ' in capsys.readouterr().err


def test_sigusr2_starts_the_report_with_the_configuration_of_the_program(tmp_path, monkeypatch):
    from metadata_wsgi.cli import report_process

    started = []
    monkeypatch.setattr(os, 'posix_spawnp', lambda path, argv, environ: started.append(argv) or 1)
    report_process.start(str(tmp_path), 'quantum-metadata-agent', ['--neutron', '--config-file=/etc/x'])
    assert isinstance(started[0], list)
    assert started[0][1:] == [
        'report', '--state-path', str(tmp_path), '--output', f'{tmp_path}/report-quantum-metadata-agent.txt',
        '--neutron', '--config-file=/etc/x',
    ]  # fmt: skip
    parser = argparse.ArgumentParser()
    report.add_verb(parser.add_subparsers())
    assert parser.parse_args(started[0][1:]).neutron is True
