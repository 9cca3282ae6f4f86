# SPDX-License-Identifier: Apache-2.0
"""``metadata-wsgi report``: everything that a bug report needs, in one file, without secrets.

The report has versions, configuration, pipeline, status, processes, the state directory, rules, recent failures and the
end of the log. If a section cannot be read, the report has the reason in its place. The values of secret options, and
of options of other programs, are left out. Then every secret in the configuration files is removed from the whole text,
even in the usual encodings (``config.secret_masking``).

The agent and the namespace proxies start this verb at SIGUSR2 (``report_process``).
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import pwd
import re
import stat
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from oslo_config import cfg

from metadata_wsgi import safe_files
from metadata_wsgi.cli import (
    agent,
    attach_command,
    attached,
    check_config,
    listing,
    option_registry,
    recent_failures,
    status,
    verbs,
)
from metadata_wsgi.cli.exit_codes import WELL
from metadata_wsgi.config import config_files, file_warnings, neutron_files, secret_masking, state_paths
from metadata_wsgi.errors import MetadataError, NetnsError, UsageError
from metadata_wsgi.failures import shared_memory, table
from metadata_wsgi.netns import namespaces
from metadata_wsgi.netns.iptables import kernel_families
from metadata_wsgi.netns.target import PREFIXES
from metadata_wsgi.pipeline import order

_PROGRAM = re.compile(
    r'^(\S*python\S*( -\S+( \w+)?)* |gunicorn: (master|worker) \[)?\S*'
    r'(quantum-metadata-agent|neutron-metadata-agent-wsgi|quantum-ns-metadata-proxy|metadata-wsgi)(\s|\]|$)'
)
"""Matches the command line of a process of this package, even after gunicorn has changed it (setproctitle)."""
MAX_PROCESSES, MAX_FILES, MAX_NAMESPACES, MAX_LOG_LINES = 100, 200, 20, 50
MAX_LINE = 2000

Section = Callable[[argparse.Namespace], Iterable[str]]


def add_verb(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        subparsers,
        'report',
        description='Writes one text file with versions, configuration, pipeline, status, processes, rules, recent '
        'failures and the last warnings of the log. Secrets are left out, also in base64, hexadecimal, '
        'percent-encoding and JSON. The values of options of other programs are left out too. The file has ids and '
        'addresses of instances: read it before you publish it. Without root some sections are missing.',
    )
    check_config.add_configuration(parser)
    parser.add_argument('--state-path', help='directory of pid files and socket')
    parser.add_argument(
        '--output',
        metavar='FILE',
        help='the output file, replaced if it exists; - is standard output (default: '
        'metadata-wsgi-report-HOST-TIME.txt in the current directory)',
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the report and print the path of its file."""
    text = report(args)
    if args.output == '-':
        sys.stdout.write(text)
        return WELL
    now = datetime.now(UTC).strftime('%Y%m%dT%H%M%SZ')
    path = os.path.abspath(args.output or f'metadata-wsgi-report-{platform.node()}-{now}.txt')
    try:
        replace_file(path, text)
    except OSError as error:
        raise UsageError(f'{path} cannot be written: {error.strerror}') from error
    print(path)
    return WELL


def replace_file(path: str, text: str) -> None:
    """Write a file that only its owner may read. Follows no link that another user made in the directory."""
    directory, name = os.path.split(path)
    dir_fd = safe_files.open_directory(directory)
    temporary = f'.{name}.{os.getpid()}'
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=dir_fd)
        try:
            with os.fdopen(fd, 'w', encoding='utf-8', errors='replace') as file:
                file.write(text)
            os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=dir_fd)
            raise
    finally:
        os.close(dir_fd)


def report(args: argparse.Namespace) -> str:
    """The text of the report, without secrets."""
    out = io.StringIO()
    out.write(f'metadata-wsgi report of {platform.node()}, {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC\n')
    for title, section in SECTIONS:
        out.write(f'\n== {title}\n')
        for line in _lines(section, args):
            out.write(_one_line(line) + '\n')
    return secret_masking.mask(out.getvalue(), secret_masking.secrets_in(_files(args), _known()))


def _lines(section: Section, args: argparse.Namespace) -> Iterator[str]:
    """The lines of a section. If the section fails, the lines before the error, then the error."""
    try:
        yield from section(args)
    except (MetadataError, OSError) as error:
        yield f'cannot be read: {error}'
    except Exception:
        # A bug in one section must not prevent the other sections: the report may be about this bug.
        yield from ['cannot be read, unexpected error:', *traceback.format_exc().splitlines()]


def _one_line(line: str) -> str:
    return ''.join(letter if letter.isprintable() else '?' for letter in line[:MAX_LINE])


def _files(args: argparse.Namespace) -> list[str]:
    return config_files.files(neutron_files.global_conf_of(args))


def _known() -> list[tuple[str, Sequence[cfg.Opt]]]:
    """Our options and those of oslo.log."""
    published = metadata.entry_points(group='oslo.config.opts')
    of_oslo_log: list[tuple[str | None, list[cfg.Opt]]] = published['oslo.log'].load()()
    return [*option_registry.list_opts(), *((group or 'DEFAULT', opts) for group, opts in of_oslo_log)]


def _conf(args: argparse.Namespace) -> cfg.ConfigOpts:
    conf = config_files.load(neutron_files.global_conf_of(args), [*state_paths.OPTS, *status.LOG_OPTS])
    if args.state_path:
        conf.set_override('state_path', os.path.abspath(args.state_path))
    return conf


def _versions(args: argparse.Namespace) -> Iterator[str]:
    yield f'metadata_wsgi {metadata.version("metadata_wsgi")}'
    yield f'Python {platform.python_version()} {sys.executable}'
    yield f'kernel {platform.release()} {platform.machine()}'
    with suppress(OSError):
        yield f'system {platform.freedesktop_os_release().get("PRETTY_NAME", "unknown")}'
    yield f'run by uid {os.geteuid()}'
    for requirement in sorted(metadata.requires('metadata_wsgi') or ()):
        if 'extra ==' in requirement:
            continue
        name = ''.join(letter if letter.isalnum() or letter in '._-' else ' ' for letter in requirement).split()[0]
        try:
            yield f'{name} {metadata.version(name)}'
        except metadata.PackageNotFoundError:
            yield f'{name} is not installed'


def _configuration(args: argparse.Namespace) -> Iterator[str]:
    paths = _files(args)
    if not paths:
        yield 'no file: defaults only'
    for path in paths:
        yield f'{path} ({_owner_and_mode(os.stat(path))})'
        try:
            yield from (f'    {line}' for line in secret_masking.masked_lines(path, _known()))
        except cfg.ParseError as error:
            yield f'    not a configuration file: {error.msg} at line {error.lineno}'
    yield from file_warnings.world_readable_secrets(paths, option_registry.list_opts())
    yield from file_warnings.misspelt(paths, option_registry.list_opts())


def _paste_file(args: argparse.Namespace) -> Iterator[str]:
    """Sections, pipelines and the factory of each filter. Other values are not shown: they may be secret."""
    path = args.paste_file or agent.paste_file(neutron_files.global_conf_of(args))[0]
    yield f'{path} ({_owner_and_mode(os.stat(path))})'
    for line in Path(path).read_text(encoding='utf-8', errors='replace').splitlines():
        name, sign, _ = line.partition('=')
        if line.startswith('[') or name.strip() in ('use', 'pipeline', 'paste.filter_factory', 'paste.app_factory'):
            yield f'    {line}'
        elif sign and not line.lstrip().startswith(('#', ';')):
            yield f'    {name.strip()} = (not shown)'


def _pipeline(args: argparse.Namespace) -> Iterator[str]:
    path, app = check_config.load(args)
    yield f'{args.pipeline} of {path}'
    for link in order.chain(app):
        yield f'    {order.name(link)}  ({type(link).__module__}.{type(link).__qualname__})'


def _status(args: argparse.Namespace) -> Iterator[str]:
    for finding in status.parts(_conf(args)):
        yield f'{finding.part}: {finding.state}: {finding.text}'
        yield from finding.details


def _attached(args: argparse.Namespace) -> Iterator[str]:
    arguments = argparse.Namespace(
        config_file=[], state_path=_conf(args).state_path, metadata_proxy_socket=None, iptables=None
    )
    statuses, _ = attached.statuses(arguments)
    yield from attached.table(statuses).splitlines()


def _processes(args: argparse.Namespace) -> Iterator[str]:
    yield 'pid ppid uid rss descriptors command'
    found = 0
    for pid in sorted(map(int, filter(str.isdecimal, os.listdir('/proc')))):
        with suppress(OSError, ValueError):
            directory = Path(f'/proc/{pid}')
            command = directory.joinpath('cmdline').read_bytes().replace(b'\0', b' ').decode(errors='replace').strip()
            if pid == os.getpid() or not _PROGRAM.search(command):
                continue
            values = dict(
                line.split(':', 1) for line in directory.joinpath('status').read_text(errors='replace').splitlines()
            )
            try:
                descriptors = str(len(os.listdir(directory / 'fd')))
            except PermissionError:
                descriptors = 'unknown'
            ppid, uid, rss = (values[name].split() for name in ('PPid', 'Uid', 'VmRSS'))
            yield f'{pid} {ppid[0]} {uid[0]} {rss[0]} kB {descriptors} {command}'
            found += 1
            if found == MAX_PROCESSES:
                yield 'and more'
                return


def _state_directory(args: argparse.Namespace) -> Iterator[str]:
    top = _conf(args).state_path
    yield f'{top} ({_owner_and_mode(os.stat(top))})'
    names = sorted(os.listdir(top))
    names += sorted(f'external/pids/{name}' for name in _list(os.path.join(top, 'external', 'pids')))
    for name in names[:MAX_FILES]:
        with suppress(FileNotFoundError):
            yield f'    {_owner_and_mode(os.lstat(os.path.join(top, name)))}  {name}'
    if len(names) > MAX_FILES:
        yield f'    and {len(names) - MAX_FILES} more'


def _rules(args: argparse.Namespace) -> Iterator[str]:
    names = [name for name in namespaces.names() if name.startswith(tuple(PREFIXES.values()))]
    iptables = attach_command.iptables()
    for name in names[:MAX_NAMESPACES]:
        yield name
        try:
            rules = iptables.ours(name, families=kernel_families())
        except NetnsError as error:
            yield f'    cannot be read: {error}'
            continue
        yield from (f'    IPv{rule.family} {rule.table} {rule.chain} {rule}' for rule in rules)
    if len(names) > MAX_NAMESPACES:
        yield f'and {len(names) - MAX_NAMESPACES} more namespaces'


def _failures(args: argparse.Namespace) -> Iterable[str]:
    tables = shared_memory.read_all()
    if not tables:
        return [recent_failures.NO_WORKER]
    found = recent_failures.to_listing(table.merge(tables))
    cells = [['-' if cell is None else str(cell) for cell in row] for row in found.rows]
    return listing.table(found.columns, cells)


def _log(args: argparse.Namespace) -> Iterable[str]:
    path = status.log_path(_conf(args))
    if not path:
        return ['the agent logs to standard error: journalctl -u quantum-metadata-agent']
    return [path, *status.last_faults(path, MAX_LOG_LINES)]


SECTIONS: tuple[tuple[str, Section], ...] = (
    ('Versions', _versions),
    ('Configuration', _configuration),
    ('Paste file', _paste_file),
    ('Pipeline', _pipeline),
    ('Status', _status),
    ('Attached', _attached),
    ('Recent failures', _failures),
    ('Processes', _processes),
    ('State directory', _state_directory),
    ('Rules of ours', _rules),
    ('Last warnings and errors of the log', _log),
)


def _list(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _owner_and_mode(found: os.stat_result) -> str:
    return f'{stat.filemode(found.st_mode)} {_user(found.st_uid)}'


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
