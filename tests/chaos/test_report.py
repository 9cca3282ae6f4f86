# SPDX-License-Identifier: Apache-2.0
"""The table in doc/chaos.md: a run replaces the rows that it has measured, and leaves the others."""

import pytest

from tests.chaos import report
from tests.chaos.experiment import Row
from tests.chaos.host import ONE_HOP, SHARED

OTHER = Row(SHARED, 'Nova down', 5.0, 100, {}, 6.0, 1.0)
FORMER = Row(SHARED, 'Nova down', 60.0, 200, {'503 with Retry-After': 7}, 9.0, 2.0)
PRESENT = Row(SHARED, 'Nova down', 60.0, 300, {'cut': 1, '503 with Retry-After': 8}, 9.5, 3.0)
FURTHER = Row(ONE_HOP, 'Keystone down', 5.0, 50, {}, 5.0, 1.5)


def test_measured_rows_are_replaced_and_the_others_stay_in_order(tmp_path):
    file = tmp_path / 'chaos.md'
    file.write_text('Text.\n\n' + report.table([OTHER, FORMER]) + '\n')
    report.write(file, [FURTHER, PRESENT])
    assert file.read_text() == 'Text.\n\n' + report.table([OTHER, PRESENT, FURTHER]) + '\n'


@pytest.mark.parametrize('text', ['Text.\n\n', ''])
def test_file_without_a_table_and_new_file_get_one(tmp_path, text):
    file = tmp_path / 'chaos.md'
    if text:
        file.write_text(text)
    report.write(file, [OTHER])
    assert file.read_text() == text + report.table([OTHER]) + '\n'


def test_every_failure_has_its_count():
    assert '| 1 (cut: 1) | 8 |' in report.table([PRESENT])
