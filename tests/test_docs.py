# SPDX-License-Identifier: Apache-2.0
"""The documentation agrees with the code: files and symbols exist, quoted log messages exist, links resolve, and the
generated reference pages follow the options and filters. ``tox -e docs`` builds the pages."""

import ast
import configparser
import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from oslo_config import cfg

ROOT = Path(__file__).parent.parent
DOC = ROOT / 'doc'
PAGES = [
    *sorted(page for page in DOC.rglob('*.md') if 'reference' not in page.parts),
    *(ROOT / name for name in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md')),
]


def rows(page):
    """The cells of each row of a page's tables."""
    for line in (DOC / page).read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r'(?<!\\)\|', line)[1:-1]]
        if cells and not set(cells[0]) <= {'-', ':'}:
            yield cells


def symbols(path):
    """Names that a module defines, ``Class.method`` for a method, and its words."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, 'target', None)]
        found |= {target.id for target in targets if isinstance(target, ast.Name)}
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f'{node.name}.{method.name}' for method in node.body if isinstance(method, ast.FunctionDef)}
    return found


CHANGES = [cells for cells in rows('where_to_change.md') if cells[0] != 'Change']
STEPS = [cells for cells in rows('architecture.md') if cells[0].isdigit()]


def test_thirty_changes_and_every_step_of_a_request_were_found():
    assert len(CHANGES) == 30
    assert len(STEPS) > 10


@pytest.mark.parametrize(
    ('file', 'symbol'),
    [(cells[1], cells[2]) for cells in CHANGES + STEPS],
    ids=lambda cell: cell.strip('`'),
)
def test_a_named_file_defines_the_named_symbol(file, symbol):
    path = ROOT / 'metadata_wsgi' / file.strip('`')
    assert path.is_file()
    assert symbol.strip('`') in symbols(path)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page):
    named = re.findall(r'`((?:metadata_wsgi|tests|doc|etc|examples|benchmarks)/[\w./-]*)', page.read_text())
    # The sample's directory in /etc and an uninstalled package have the same name as ours.
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_resolves(page):
    targets = re.findall(r'\]\(([^)#:]+)(?:#[^)]*)?\)', page.read_text())
    generated = {'reference/options.md', 'reference/filters.md', 'reference/programs.md'}
    missing = [name for name in targets if not (page.parent / name).exists()]
    assert {name.removeprefix('doc/').removeprefix('../') for name in missing} <= generated


def test_every_page_that_a_file_of_the_code_names_exists():
    files = [
        path
        for folder in ('metadata_wsgi', 'etc', 'examples', 'tests', 'benchmarks')
        for path in (ROOT / folder).rglob('*')
        if path.suffix in {'.py', '.ini', '.sample', '.service'}
    ]
    named = {(path.name, page) for path in files for page in re.findall(r'doc/[a-z_]+\.md', path.read_text())}
    assert {(name, page) for name, page in named if not (ROOT / page).exists()} == set()


def code_text():
    """Every string of the package, implicit concatenation included."""
    nodes = (node for path in (ROOT / 'metadata_wsgi').rglob('*.py') for node in ast.walk(ast.parse(path.read_text())))
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def test_every_message_on_the_troubleshooting_page_is_in_the_code():
    """In its last section, the first cell of each row; ``...`` stands for what changes."""
    section = (DOC / 'troubleshooting.md').read_text().partition('## Messages in the log')[2]
    quoted = re.findall(r'^\| `(.+?)` \|', section, re.MULTILINE)
    assert len(quoted) > 10
    strings = code_text()
    parts = [part.strip() for message in quoted for part in message.split('...') if len(part.strip()) > 3]
    assert [part for part in parts if not any(part in text for text in strings)] == []


def test_the_table_of_fault_responses_has_the_cases_of_its_test():
    from tests.clients.test_error_statuses import CASES

    written = [tuple(cells[:4]) for cells in rows('fault_responses.md')][1:]
    assert written == [(case.what, case.fault, case.sent_by, str(case.status)) for case in CASES]


@pytest.fixture
def reference(monkeypatch):
    """The module that generates the reference pages."""
    monkeypatch.syspath_prepend(str(DOC))
    import reference_pages

    yield reference_pages
    del sys.modules['reference_pages']


def test_every_option_is_on_the_options_page(reference):
    from metadata_wsgi.cli import option_registry

    page = reference.options_page(option_registry.list_opts())
    assert [
        opt.dest for _, opts in option_registry.list_opts() for opt in opts if f'### `{opt.dest}`' not in page
    ] == []


def test_a_new_option_changes_the_options_page(reference):
    before = [('DEFAULT', [cfg.StrOpt('old', help='An old one.')])]
    new = cfg.IntOpt('new_s', default=3, min=1, help='Use *all* <of> it.', deprecated_name='former')
    page = reference.options_page([('DEFAULT', [*before[0][1], new])])
    assert page.startswith(reference.options_page(before).rstrip())
    assert '### `new_s`' in page
    assert '*Whole number*, default `3`, at least `1`.' in page
    assert r'Use \*all\* \<of\> it.' in page
    assert 'Deprecated names: `former`.' in page


def test_every_filter_is_on_the_filters_page_with_what_it_reads_and_its_options(reference):
    from importlib.metadata import entry_points

    page = reference.filters_page(entry_points(group='paste.filter_factory'))
    for name in ('catch_errors', 'instance', 'signature', 'lookup_cache', 'request_log'):
        assert f'## `{name}`\n' in page
    assert 'Reads `DEADLINE`, `SOURCE`; provides `INSTANCE`.' in page
    assert 'Deprecated names: `cache_answers`.' in page
    assert '### `metadata_header_prefix`' in page


def test_a_filter_of_another_package_is_not_on_the_filters_page(reference):
    other = EntryPoint('other', 'somewhere.else:factory', 'paste.filter_factory')
    assert 'other' not in reference.filters_page([other])


def test_every_program_and_verb_is_on_the_programs_page(reference):
    assert {'attach', 'check-config', 'show-pipeline', 'explain', 'status', 'keeper'} <= set(reference.verbs())
    scripts = configparser.ConfigParser()
    scripts.read(ROOT / 'setup.cfg')
    programs = {name.strip() for name in scripts['options']['scripts'].split()}
    assert programs == {f'bin/{name}' for name in ('metadata-wsgi', *reference.PROGRAMS)}


def test_columns_and_code_of_a_docstring_become_text_blocks(reference):
    markdown = reference.markdown_of_docstring('What it does.\n\n``a``   one\n``b``   two\n\nSo::\n\n    x = 1\n')
    assert markdown == 'What it does.\n\n```text\na   one\nb   two\n```\n\nSo:\n\n```text\nx = 1\n```\n'


def test_a_table_of_a_docstring_becomes_a_table(reference):
    line = '=====  ==========\n'
    table = f'{line}first  second\n{line}a      one\n       and <more>\nb      ``two``\n{line}'
    assert reference.markdown_of_docstring(table) == (
        '| first | second |\n| --- | --- |\n| a | one and \\<more\\> |\n| b | `two` |\n'
    )


@pytest.mark.parametrize('page', [page for page in PAGES if page.name != 'CHANGELOG.md'], ids=lambda page: page.name)
def test_no_page_uses_a_deprecated_option_name(page):
    from metadata_wsgi.cli import option_registry

    groups = [options for group, options in option_registry.list_opts() if group not in ('neutron', 'quantum')]
    deprecated = {old.name for options in groups for option in options for old in option.deprecated_opts}
    assert 'metadata_look_at_start' in deprecated
    text = page.read_text()
    assert [name for name in deprecated if re.search(rf'\b{name}\b (=|`)|`{name}`', text)] == []
