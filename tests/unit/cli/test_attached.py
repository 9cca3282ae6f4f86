# SPDX-License-Identifier: Apache-2.0
import argparse
import os
import subprocess
import sys

import pytest

from metadata_wsgi.cli import attached
from metadata_wsgi.netns.attachment_status import AttachmentStatus


def test_table_shows_problems_below_the_row():
    whole = AttachmentStatus('qrouter-aaaa', 'aaaa', 'router', 12, 9697, 'yes', ())
    half = AttachmentStatus(
        None, 'bbbbbb', 'network', None, 80, 'no', ('there is no namespace qdhcp-bbbbbb', 'no proxy runs')
    )
    assert attached.table([whole, half]) == (
        'KIND     ID      NAMESPACE     MODE     PID  PORT  RULES\n'
        'router   aaaa    qrouter-aaaa  process  12   9697  yes\n'
        'network  bbbbbb  -             process  -    80    no\n'
        '    ! there is no namespace qdhcp-bbbbbb\n'
        '    ! no proxy runs\n'
    )


def test_attachments_as_rows_for_programs():
    half = AttachmentStatus(None, 'bbbbbb', 'network', None, 80, 'no', ('one', 'two'), ('note',))
    listing = attached.to_listing([half])
    assert dict(zip(listing.columns, listing.rows[0], strict=True)) == {
        'kind': 'network', 'id': 'bbbbbb', 'namespace': None, 'mode': 'process', 'pid': None, 'port': 80, 'rules': 'no',
        'problems': ('one', 'two'), 'notes': ('note',),
    }  # fmt: skip


def test_table_shows_notes_with_a_dash():
    noted = AttachmentStatus('qdhcp-aaaa', 'aaaa', 'network', 12, 80, 'yes', (), ('another has it',))
    assert attached.table([noted]).splitlines()[2:] == ['    - another has it']


def test_without_root_the_error_is_one_line():
    code = (
        'import os, sys\n'
        'from metadata_wsgi.cli import attached, main\n'
        'if os.geteuid() == 0: os.setuid(65534)\n'
        'sys.exit(main.main(["attached"]))\n'
    )
    # Without what measures coverage, which that user could not write down.
    environ = {name: value for name, value in os.environ.items() if not name.startswith('COVERAGE')}
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False, env=environ)
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr == 'metadata-wsgi attached: only root can enter namespaces and change rules; run it with sudo\n'


@pytest.mark.skipif(os.geteuid() != 0, reason='lists namespaces: run it as root')
def test_unavailable_keeper_does_not_hide_the_other_attachments(tmp_path, capsys):
    (tmp_path / 'keeper').touch()
    parser = argparse.ArgumentParser()
    attached.add_verb(parser.add_subparsers())
    args = parser.parse_args(['attached', '--state-path', str(tmp_path)])
    assert args.run(args) == 1
    out, err = capsys.readouterr()
    assert out.startswith('KIND ')
    assert 'start metadata-wsgi keeper' in err
