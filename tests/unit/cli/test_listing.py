# SPDX-License-Identifier: Apache-2.0
"""The output formats ``-f table|json|yaml|value|csv`` and ``-c COLUMN``."""

import argparse
import csv
import io
import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from metadata_wsgi.cli import listing

COLUMNS = ('name', 'pid', 'problems')
ROWS = [('a b', 12, ('first', 'second')), ('c', None, ())]


def formatted(*argv, columns=COLUMNS, rows=ROWS, formats=()):
    parser = argparse.ArgumentParser()
    listing.add_arguments(parser, columns, *formats)
    args = parser.parse_args(argv)
    out = io.StringIO()
    listing.write(args, listing.Listing(columns, rows), out)
    return out.getvalue()


def test_format_table_aligns_columns_below_a_header():
    assert formatted() == 'NAME  PID  PROBLEMS\na b   12   first; second\nc     -    -\n'


def test_format_json_is_a_list_of_objects():
    assert json.loads(formatted('-f', 'json')) == [
        {'name': 'a b', 'pid': 12, 'problems': ['first', 'second']},
        {'name': 'c', 'pid': None, 'problems': []},
    ]


def test_format_yaml_has_the_same_objects_as_json():
    assert yaml.safe_load(formatted('-f', 'yaml')) == json.loads(formatted('-f', 'json'))


def test_format_csv_has_a_header_and_quotes_text():
    assert formatted('--format', 'csv') == ('"name","pid","problems"\n"a b",12,"first; second"\n"c","",""\n')


def test_format_value_has_no_header():
    assert formatted('-f', 'value') == 'a b 12 first; second\nc None \n'


def test_option_column_selects_columns_in_any_case_and_may_be_repeated():
    assert formatted('-f', 'value', '-c', 'PID', '-c', 'Name') == 'a b 12\nc None\n'
    assert json.loads(formatted('-f', 'json', '--column', 'pid')) == [{'pid': 12}, {'pid': None}]


def test_option_column_makes_a_table_of_the_default_format():
    assert formatted('-c', 'name') == 'NAME\na b\nc\n'


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['-f', 'xml'], "invalid choice: 'xml'"),
        (['-c', 'colour'], "invalid choice: 'colour'"),
        (['-c'], 'expected one'),
    ],
)
def test_an_unknown_format_or_column_exits_with_2_and_names_the_choices(argv, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        formatted(*argv)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_a_listing_without_rows_has_its_header_in_table_and_csv_only():
    assert [formatted('-f', name, rows=[]) for name in ('table', 'csv', 'value', 'json', 'yaml')] == [
        'NAME  PID  PROBLEMS\n', '"name","pid","problems"\n', '', '[]\n', '[]\n'
    ]  # fmt: skip


@given(st.lists(st.tuples(st.text(), st.integers() | st.none(), st.lists(st.text()).map(tuple)), max_size=4))
def test_every_format_keeps_the_values_and_no_control_character_reaches_a_terminal(rows):
    expected = [{'name': a, 'pid': b, 'problems': list(c)} for a, b, c in rows]
    assert json.loads(formatted('-f', 'json', rows=rows)) == expected
    for name in ('table', 'value', 'csv'):
        text = formatted('-f', name, rows=rows)
        assert all(letter.isprintable() or letter == '\n' for letter in text)
        assert text.count('\n') == len(rows) + (name != 'value')
    assert len(list(csv.reader(io.StringIO(formatted('-f', 'csv', rows=rows))))) == len(rows) + 1
