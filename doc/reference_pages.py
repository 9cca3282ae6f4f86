# SPDX-License-Identifier: Apache-2.0
"""The pages of ``doc/reference/`` that are generated from the code: options, filters and programs.

``conf.py`` calls :func:`write` at the start of each build. Options come from ``list_opts``, filters from the entry
points of ``paste.filter_factory``, programs from their ``--help``. The written files are not in the repository.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from oslo_config import cfg

from metadata_wsgi import instruments
from metadata_wsgi.cli import agent, main, namespace_proxy, neutron_agent, option_registry
from metadata_wsgi.lookup import neutron
from metadata_wsgi.pipeline import environ_keys

GENERATED = '<!-- Generated from the code by doc/reference_pages.py. Change the code instead. -->\n'

OPTIONS_INTRODUCTION = """\
Every option of the configuration files, in the order of the pipeline. `metadata_agent.ini.sample` has the same options
as a file. A misspelt name is logged as a warning; a wrong value stops the start.
"""
FILTERS_INTRODUCTION = """\
Every filter that a pipeline of the paste file can name. A filter *reads* environ keys that a filter before it must have
set, and *provides* keys for the filters after it. A pipeline whose order cannot work is refused at start.
`metadata-wsgi show-pipeline` prints the same for your own pipeline.
"""

METRICS_INTRODUCTION = f"""\
Every metric that the programs publish; [Metrics and alerts](../metrics.md) says how. A histogram has the series
`..._bucket`, `..._sum` and `..._count`; its buckets end at
{', '.join(f'{bound:g}' for bound in instruments.SECONDS)} s.
"""

OptionGroups = Iterable[tuple[str, Sequence[cfg.Opt]]]

PROGRAMS = {
    'quantum-metadata-agent': agent.main,
    'neutron-metadata-agent-wsgi': neutron_agent.main,
    'quantum-ns-metadata-proxy': namespace_proxy.main,
}


def write(directory: Path) -> None:
    """Write the generated pages into ``directory``; a page that is already right is not touched."""
    pages = {
        'options.md': options_page(option_registry.list_opts()),
        'filters.md': filters_page(entry_points(group='paste.filter_factory')),
        'programs.md': programs_page(),
        'metrics.md': metrics_page(),
    }
    directory.mkdir(exist_ok=True)
    for name, text in pages.items():
        path = directory / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def options_page(groups: OptionGroups) -> str:
    """Every option with its type, default, limits, deprecated names and help text."""
    text = [
        GENERATED,
        '# Options\n',
        OPTIONS_INTRODUCTION,
    ]
    for group, options in groups:
        if group in neutron.GROUPS:
            if group == neutron.GROUPS[0]:
                names = ' or '.join(f'`[{name}]`' for name in neutron.GROUPS)
                text += [f'## {names}\n', f'Credentials for Neutron, read by keystoneauth. Use one section: {names}.\n']
                text += [_option(option) for option in options]
            continue
        text.append(f'## `[{group}]`\n')
        text += [_option(option) for option in options]
    return '\n'.join(text)


def _option(option: cfg.Opt, heading: str = '###') -> str:
    facts = [_type(option)]
    if option.default not in (None, '', []):
        facts.append(f'default {_code(_value(option.default))}')
    elif option.required:
        facts.append('no default: must be set')
    for limit, words in (('min', 'at least'), ('max', 'at most')):
        if (value := getattr(option.type, limit, None)) is not None and not isinstance(option, cfg.PortOpt):
            facts.append(f'{words} {_code(_value(value))}')
    lines = [
        f'{heading} `{option.dest}`\n',
        f'*{facts[0][:1].upper() + facts[0][1:]}*' + ''.join(f', {fact}' for fact in facts[1:]) + '.\n',
    ]
    if option.help:
        lines.append(markdown(option.help) + '\n')
    lines += _choices(option)
    if option.deprecated_opts:
        old = ', '.join(_code(name.name if not name.group else f'[{name.group}] {name.name}')
                        for name in option.deprecated_opts)  # fmt: skip
        lines.append(f'Deprecated names: {old}.\n')
    if option.deprecated_for_removal:
        lines.append(f'**Deprecated.** {markdown(option.deprecated_reason or "")}\n')
    return '\n'.join(lines)


def _type(option: cfg.Opt) -> str:
    if option.multi:
        return 'text, may be repeated'
    names = {'String': 'text', 'Boolean': 'true or false', 'Integer': 'whole number', 'Float': 'number', 'List': 'list',
             'Port': 'TCP port'}  # fmt: skip
    return names.get(type(option.type).__name__, 'text')


def _choices(option: cfg.Opt) -> list[str]:
    choices = getattr(option.type, 'choices', None)
    if not choices:
        return []
    lines = [
        f'- {_code(str(value))}' + (f': {markdown(meaning)}' if meaning else '') for value, meaning in choices.items()
    ]
    return ['One of:\n', *lines, '']


def _value(value: object) -> str:
    if isinstance(value, list):
        return ','.join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _code(text: str) -> str:
    return f'`{text}`'


def filters_page(entries: Iterable[EntryPoint]) -> str:
    """Every filter: what it does, what it reads and provides, and its options."""
    by_factory: dict[str, list[str]] = {}
    for entry in entries:
        if entry.value.startswith('metadata_wsgi.'):
            by_factory.setdefault(entry.value, []).append(entry.name)
    text = [
        GENERATED,
        '# Filters\n',
        FILTERS_INTRODUCTION,
    ]
    for value, names in sorted(by_factory.items()):
        module = importlib.import_module(value.partition(':')[0])
        name = module.__name__.rpartition('.')[2]
        filter_class = _filter_class(module)
        text += [
            f'## `{name}`\n',
            f'Reads {_keys(filter_class.REQUIRES)}; provides {_keys(filter_class.PROVIDES)}.\n',
            f'Code: `{module.__name__.replace(".", "/")}.py`.\n',
            markdown_of_docstring(module.__doc__ or ''),
        ]
        if deprecated := sorted({*names} - {name}):
            text.append(f'Deprecated names: {", ".join(map(_code, deprecated))}.\n')
        if options := getattr(module, 'OPTS', ()):
            text.append(f'Options, in section `[{getattr(module, "GROUP", "DEFAULT")}]`:\n')
            text += [_option(option) for option in options]
    return '\n'.join(text)


def _filter_class(module: Any) -> Any:
    """The class of a filter's module that says what it reads and provides."""
    (found,) = [
        found
        for _, found in inspect.getmembers(module, inspect.isclass)
        if found.__module__ == module.__name__ and found.__name__.endswith('Filter') and 'REQUIRES' in vars(found)
    ]
    return found


def _keys(keys: Iterable[str]) -> str:
    names = {value: name for name, value in vars(environ_keys).items() if name.isupper() and isinstance(value, str)}
    return ', '.join(f'`{names.get(key, key)}`' for key in sorted(keys)) or 'nothing'


def programs_page() -> str:
    """``--help`` of every program and verb."""
    text = [GENERATED, '# Programs\n', 'What each program prints with `--help`.\n']
    for verb in verbs():
        text.append(f'## `metadata-wsgi {verb}`\n')
        text.append(_help(main.main, [verb, '--help']))
    for name, run in PROGRAMS.items():
        text.append(f'## `{name}`\n')
        text.append(_help(run, ['--help']))
    return '\n'.join(text)


def metrics_page() -> str:
    """Every metric: its type, its labels with their values, and what it counts."""
    text = [GENERATED, '# Every metric\n', METRICS_INTRODUCTION]
    for instrument in instruments.ALL:
        how = {'sum': 'summed over', 'max': 'the largest of', 'min': 'the smallest of'}.get(instrument.across, '')
        kind = instrument.kind + (f', {how} the workers' if how else '')
        text += [f'## `{instrument.name}`\n', f'*{kind.capitalize()}.* {markdown(instrument.help)}\n']
        labels = [
            f'- `{label}`: ' + (', '.join(map(_code, values)) or 'as it comes')
            for label, values in instrument.labels.items()
        ]
        text += ['Labels:\n', *labels, ''] if labels else []
    return '\n'.join(text)


def verbs() -> list[str]:
    """The verbs of ``metadata-wsgi``, as its ``--help`` lists them."""
    return re.findall(r'^    ([a-z][a-z-]+)(?= |$)', _help(main.main, ['--help']), re.MULTILINE)


def _help(run: Callable[[Sequence[str]], object], argv: Sequence[str]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        run(argv)
    return f'```text\n{out.getvalue().rstrip()}\n```\n'


def markdown(text: str) -> str:
    """Plain text with ``code`` in backticks as Markdown: nothing else in it is markup."""
    parts = re.split(r'(``.+?``|`.+?`)', text)
    return ''.join(f'`{part.strip("`")}`' if index % 2 else re.sub(r'([\\*_<>\[\]|])', r'\\\1', part)
                   for index, part in enumerate(parts))  # fmt: skip


def markdown_of_docstring(docstring: str) -> str:
    """A docstring's paragraphs as Markdown. Columns, tables and indented blocks become text blocks."""
    docstring = re.sub(r':\w+:`~?([^`]+)`', r'``\1``', inspect.cleandoc(docstring))
    paragraphs = re.split(r'\n\n+', docstring)
    return '\n\n'.join(_paragraph(paragraph) for paragraph in paragraphs if paragraph != '::') + '\n'


def _paragraph(paragraph: str) -> str:
    if re.match('=+ +=', paragraph):
        return _table(paragraph)
    if paragraph.startswith('    ') or re.search(r'\S {2,}\S', paragraph):
        return f'```text\n{textwrap.dedent(paragraph).replace("``", "")}\n```'
    if paragraph.endswith('::'):
        paragraph = paragraph.removesuffix(':')
    return '\n'.join(_line(line) for line in paragraph.split('\n'))


def _table(paragraph: str) -> str:
    """A simple table of reStructuredText: columns below rows of equals signs, the first row is the header."""
    lines = paragraph.split('\n')
    starts = [match.start() for match in re.finditer('=+', lines[0])]
    ends = [*starts[1:], None]
    rows: list[list[str]] = []
    for line in lines:
        cells = [line[start:end].strip() for start, end in zip(starts, ends, strict=True)]
        if set(line) <= {'=', ' '}:
            continue
        if rows and not cells[0]:
            rows[-1] = [' '.join(filter(None, pair)) for pair in zip(rows[-1], cells, strict=True)]
        else:
            rows.append(cells)
    rows.insert(1, ['---'] * len(starts))
    return '\n'.join(f'| {" | ".join(cell if cell == "---" else markdown(cell) for cell in row)} |' for row in rows)


def _line(line: str) -> str:
    """A line of a docstring; the mark of a list item stays."""
    mark = re.match(r'\s*- ', line)
    return (mark[0] + markdown(line[mark.end() :])) if mark else markdown(line)
