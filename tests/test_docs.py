# SPDX-License-Identifier: Apache-2.0
"""The documentation agrees with the code: files and symbols exist, quoted log messages exist, links resolve, and the
generated reference pages follow the options and filters. ``tox -e docs`` builds the pages."""

import ast
import configparser
import functools
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
    """The names that a module defines. A method is ``Class.method``."""
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


def test_typical_changes_and_every_step_of_a_request_were_found():
    assert len(CHANGES) >= 30
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
    # Only paths that begin with a directory of the checkout: /etc/metadata_wsgi is another directory.
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_resolves(page):
    targets = re.findall(r'\]\(([^)#:]+)(?:#[^)]*)?\)', page.read_text())
    generated = {'reference/options.md', 'reference/filters.md', 'reference/programs.md', 'reference/metrics.md'}
    missing = [name for name in targets if not (page.parent / name).exists()]
    assert {name.removeprefix('doc/').removeprefix('../') for name in missing} <= generated


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_no_page_has_the_marks_of_a_merge_conflict(page):
    assert not re.search('^(<<<<<<<|>>>>>>>|=======$)', page.read_text(), re.MULTILINE)


def test_every_page_that_a_file_of_the_code_names_exists():
    files = [
        path
        for folder in ('metadata_wsgi', 'etc', 'examples', 'tests', 'benchmarks')
        for path in (ROOT / folder).rglob('*')
        if path.suffix in {'.py', '.ini', '.sample', '.service'}
    ]
    named = {(path.name, page) for path in files for page in re.findall(r'doc/[a-z_]+\.md', path.read_text())}
    assert {(name, page) for name, page in named if not (ROOT / page).exists()} == set()


def test_the_environment_for_a_part_of_the_tests_has_no_limit_of_the_coverage():
    """Else ``tox -e NAME -- tests/netns`` fails without a failed test: a part executes less than 95 % of the code."""
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / 'tox.ini')
    named = re.findall(r'tox -e (\w+) -- (?:tests/|-k)', (ROOT / 'CONTRIBUTING.md').read_text())
    assert named
    for name in named:
        assert 'coverage' not in tox[f'testenv:{name}']['commands']


# LOG calls whose format has no words: where their texts are made, (file, function or constant).
COMPOSED = {
    'cli/agent.py': [('config/file_warnings.py', 'world_readable_secrets')],
    'cli/reconciler.py': [('cli/reconciler.py', '_mark_lost'), ('cli/reconciler.py', '_difference')],
    'cli/visibility_check.py': [
        ('nova_proxy/probe.py', 'check_host'),
        ('nova_proxy/probe.py', '_wrong_signature_problem'),
        ('lookup/neutron/lookup.py', 'VisibilityCheck'),
    ],
    'cli/watch.py': [('netns/target.py', 'NO_WORKER')],
    'config/file_warnings.py': [('config/file_warnings.py', 'misspelt')],
    'netns/attach.py': [('netns/link_local.py', 'settle'), ('netns/link_local.py', '_duplicate_message')],
    'netns/mode_change.py': [('keeper/admin_client.py', 'connect')],
}
LEVELS = {'warning', 'error', 'critical', 'exception', 'log'}


@functools.cache
def modules():
    """Path below the package -> syntax tree."""
    package = ROOT / 'metadata_wsgi'
    return {str(path.relative_to(package)): ast.parse(path.read_text()) for path in sorted(package.rglob('*.py'))}


def skeleton(node):
    """The text of a string in the code, with ``...`` for each part that varies; None for other nodes."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r'%[-+ #0-9.]*[a-z]', '...', node.value)
    if isinstance(node, ast.JoinedStr):
        return ''.join(part.value if isinstance(part, ast.Constant) else '...' for part in node.values)
    return None


def has_words(text):
    return len(re.findall(r'[A-Za-z]{2,}', text)) >= 2


def strings(tree):
    """The skeletons of all strings that are not docstrings. An f-string is one string."""
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    parts |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = [skeleton(node) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) or id(node) not in parts]
    return {text for text in texts if text and has_words(text)}


def log_formats(tree):
    """The formats of the LOG calls whose level is, or may be, WARNING or higher."""
    constants = {
        one.targets[0].id: one.value
        for one in tree.body
        if isinstance(one, ast.Assign) and hasattr(one.targets[0], 'id')
    }
    for node in ast.walk(tree):
        call = node.func if isinstance(node, ast.Call) else None
        if isinstance(call, ast.Attribute) and ast.unparse(call.value) == 'LOG' and call.attr in LEVELS:
            level, text = (node.args[0], node.args[1]) if call.attr == 'log' else (None, node.args[0])
            if level is None or ast.unparse(level) not in ('logging.INFO', 'logging.DEBUG'):
                yield skeleton(constants.get(text.id) if isinstance(text, ast.Name) else text) or '...'


def named_node(tree, name):
    """The function, class or constant ``name`` of a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return node
        if isinstance(node, ast.Assign) and any(isinstance(one, ast.Name) and one.id == name for one in node.targets):
            return node
    raise AssertionError(f'{name} is not there')


def messages():
    """Every message of the package at WARNING or higher, with ``...`` for each part that varies."""
    trees = modules()
    for name, tree in trees.items():
        for text in log_formats(tree):
            if has_words(text):
                yield text
            else:
                assert name in COMPOSED, f'{name}: {text} has no words; COMPOSED names where its texts are made'
    for file, symbol in {source for sources in COMPOSED.values() for source in sources}:
        made = named_node(trees[file], symbol)
        returned = [strings(node) for node in ast.walk(made) if isinstance(node, ast.Return)]
        yield from set().union(*returned) or strings(made)


def first_cells(page, heading=''):
    """The quoted first cell of each row of the page, or of the section with this heading."""
    section = (DOC / page).read_text().partition(heading)[2] if heading else (DOC / page).read_text()
    return re.findall(r'^\| `(.+?)` \|', section, re.MULTILINE)


def matches(entry, text):
    """Whether ``text`` is the message of the entry. ``...`` in the entry matches anything.

    If ``text`` has four words or more, the entry may also have a value in the place of a ``...`` of the text.
    """
    return has_parts(entry.split('...'), text) or (
        has_parts(text.split('...'), entry) and len(re.findall('[A-Za-z]{2,}', text)) >= 4
    )


def has_parts(parts, subject):
    """Whether ``subject`` consists of ``parts`` in this order, with any text between two parts."""
    # The quick check is first: the regular expression takes a hundred times as long.
    return all(part in subject for part in parts) and bool(
        re.fullmatch('.*'.join(map(re.escape, parts)), subject, re.DOTALL)
    )


def test_every_warning_and_error_message_has_an_entry():
    entries = first_cells('messages.md')
    assert all(has_words(entry) for entry in entries)
    found = set(messages())
    assert len(found) > 60
    missing = [text for text in sorted(found) if not any(matches(entry, text) for entry in entries)]
    assert missing == [], 'each needs a row in doc/messages.md: what it means, and what an operator does'


@pytest.mark.parametrize(
    ('page', 'heading'), [('messages.md', ''), ('troubleshooting.md', '## Problems that `attached` prints')]
)
def test_every_message_of_a_page_is_in_the_code(page, heading):
    entries = first_cells(page, heading)
    assert len(entries) > 10
    texts = set().union(*map(strings, modules().values()))
    texts |= strings(ast.parse((ROOT / 'bin' / 'metadata-wsgi-haproxy').read_text()))
    missing = [entry for entry in entries if not any(matches(entry, text) for text in texts)]
    assert missing == [], f'doc/{page} quotes texts that no program has'


def test_every_output_that_a_troubleshooting_step_explains_is_in_the_code():
    """Checks quoted texts of three words or more in the first cells of tables, except those of other programs."""
    of_curl = {"Couldn't connect to server", 'No route to host', 'Connection timed out', 'Operation timed out'}
    composed = {'DIRECTORY NOT REACHABLE', 'NOVA NOT REACHABLE'}  # HealthcheckFilter makes these of its checks
    steps = (DOC / 'troubleshooting.md').read_text().partition('## Problems that')[0]
    cells = re.findall(r'^\| ([^|]+) \|', steps, re.MULTILINE)
    quoted = {text.strip('. ') for cell in cells for text in re.findall('`([^`]+)`', cell) if text.count(' ') > 1}
    assert len(quoted) > 5
    texts = set().union(*map(strings, modules().values()))
    ours = {text for text in quoted - of_curl - composed if not text[:3].isdigit()}
    assert [text for text in ours if not any(text in one for one in texts)] == []


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_every_text_that_a_page_searches_in_the_log_is_in_the_code(page):
    of_others = {'Out of memory|segfault', 'Worker|WORKER'}  # of the kernel and of gunicorn
    searched = set(re.findall("--grep '([^']+)'", page.read_text())) - of_others
    texts = set().union(*map(strings, modules().values())) if searched else ()
    assert [text for text in searched if not any(text in one for one in texts)] == []


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


# Options of other programs that the pages name: Nova's, Neutron's, a deployment tool's, gunicorn's, haproxy's.
FOREIGN_OPTIONS = {
    'api_paste_config', 'enable_metadata_proxy', 'force_metadata', 'header_map', 'log_rotation_type', 'pipeline',
    'service_metadata_proxy',
}  # fmt: skip


def code_of(page):
    """The text of each inline code and each line of code of a page, without the output in ``console`` blocks."""
    text = re.sub(r'```console\n.*?```', '', page.read_text(), flags=re.DOTALL)
    for block in re.findall(r'^```\w*\n(.*?)^```', text, re.MULTILINE | re.DOTALL):
        yield from block.splitlines()
    text = re.sub(r'^```.*?^```', '', text, flags=re.MULTILINE | re.DOTALL)
    yield from re.findall(r'^ {4,}(\S.*)', text, re.MULTILINE)
    yield from (code.replace('\n', ' ') for code in re.findall(r'(?<!`)`([^`]+)`(?!`)', text))


def commands_of(page, program):
    """The arguments of each command line of ``program``."""
    for code in code_of(page):
        found = re.match(rf'(?:\S*/)?{program} +(.*)', code)
        # With a '=' before the program it is a line of a unit file or an option, not a command line.
        if found and '=' not in code.partition(program)[0]:
            yield re.split(r'\s#', found[1])[0].replace('`', '').split()


def options_of(parser):
    return {option for action in parser._actions for option in action.option_strings}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_has_a_verb_and_options_that_exist(page):
    from metadata_wsgi.cli import main, namespace_proxy

    verbs = next(action for action in main.make_parser()._actions if action.dest == 'verb').choices
    wrong = []
    for words in commands_of(page, 'metadata-wsgi'):
        if words[0].startswith('-') or not words[0].islower():
            continue
        own, _, passed_on = ' '.join(words[1:]).partition(' -- ')
        known = options_of(verbs[words[0]]) if words[0] in verbs else set()
        unknown = [
            word for word in own.split() if word.startswith('--') and word.partition('=')[0] not in known | {'--'}
        ]
        unknown += [
            word for word in passed_on.split() if word.startswith('--') and word not in options_of(verbs['attach'])
        ]
        if words[0] not in verbs or unknown:
            wrong.append((words, unknown))
    proxy = options_of(namespace_proxy.make_parser())
    for words in commands_of(page, 'quantum-ns-metadata-proxy'):
        wrong += [(words, word) for word in words if word.startswith('--') and word.partition('=')[0] not in proxy]
    assert wrong == []


@pytest.mark.parametrize('page', [page for page in PAGES if page.name != 'CHANGELOG.md'], ids=lambda page: page.name)
def test_every_option_that_a_page_sets_exists(page):
    from oslo_log import log

    from metadata_wsgi.cli import option_registry

    known = {option.dest for _, options in option_registry.list_opts() for option in options} | FOREIGN_OPTIONS
    conf = cfg.ConfigOpts()
    log.register_options(conf)
    known |= set(conf)
    found = {match[1] for code in code_of(page) if (match := re.match(r'([a-z][a-z0-9_]+) = ', code))}
    assert sorted(found - known) == []
