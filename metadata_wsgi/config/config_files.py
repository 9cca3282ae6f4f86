# SPDX-License-Identifier: Apache-2.0
"""Reads options from the operator's oslo.config files and checks all of them at once.

The paste file has the order of the filters. The configuration files have the values of the options. Each module
declares its options and calls :func:`load` with them. One file may contain the options of all modules.

``config_file`` in the paste file's ``[DEFAULT]``, or the command line, names the files. Several files are separated by
commas. If two files set the same option, the last file has precedence. If ``config_file`` is not set, the first
existing file of ``DEFAULT_FILES`` is read. If a directory is named, its files ``*.conf`` are read, sorted by name. The
directory is listed again at each load. On the command line ``--config-file`` and ``--config-dir`` may be repeated in
any order (:func:`split_arguments`). Inside a block of :func:`parsed_once` each file is parsed once, although many
filters call :func:`load`.

oslo.config does not report two mistakes at start, so this module checks for both. For a value outside its bounds
oslo.config raises an error only when the value is read. A required option that is not set is read as None.
``file_warnings`` searches for misspelt names.

A comment after a value, on the same line, is an error: oslo.config reads the comment as a part of the value.

The secret option ``NAME`` may be in a file of its own, which the option ``NAME_file`` names. A newline at the end of
this file is removed. If neither option is set, the secret may be in systemd's credential ``NAME`` (LoadCredential=).
systemd copies a credential only when the service starts, so a reload does not read a changed credential. No error text
contains the value of a secret.
"""

from __future__ import annotations

import argparse
import glob
import grp
import os
import pwd
import re
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from oslo_config import cfg

from metadata_wsgi.errors import ConfigError

DEFAULT_FILES = (
    '/etc/metadata_wsgi/metadata_agent.ini',
    '/etc/quantum/metadata_agent.ini',
    '/etc/neutron/metadata_agent.ini',
)


@dataclass(slots=True)
class _ParsedFiles:
    """The parsed files of one load. ``from_file`` has (group, name) of each secret that is in a file of its own."""

    conf: cfg.ConfigOpts
    from_file: set[tuple[str, str]] = field(default_factory=set)


# None outside a block of parsed_once. The keys are lists of files.
_PARSED: ContextVar[dict[tuple[str, ...], _ParsedFiles] | None] = ContextVar('metadata_wsgi.config', default=None)


@contextmanager
def parsed_once() -> Iterator[None]:
    """Inside the block each list of files is parsed once. A block inside another one has no effect."""
    if _PARSED.get() is not None:
        yield
        return
    reset_token = _PARSED.set({})
    try:
        yield
    finally:
        _PARSED.reset(reset_token)


def is_parsed_once() -> bool:
    """Whether the caller is inside a block of :func:`parsed_once`: then a program of this package loads the app."""
    return _PARSED.get() is not None


def files(global_conf: Mapping[str, str]) -> list[str]:
    """The configuration files that ``global_conf`` (paste's ``[DEFAULT]``) names, else the default file."""
    named = global_conf.get('config_file', '')
    if not named:
        return [path for path in DEFAULT_FILES if os.path.exists(path)][:1]
    found = []
    for name in filter(None, map(str.strip, named.split(','))):
        path = os.path.abspath(name)
        if os.path.isdir(path):
            # Without these permissions glob() finds nothing, as if the directory had no file.
            if not os.access(path, os.R_OK | os.X_OK, effective_ids=True):
                raise _cannot_read('config_file', path)
            found += sorted(glob.glob(os.path.join(glob.escape(path), '*.conf')))
        else:
            found.append(path)
    return found


def add_arguments(parser: argparse.ArgumentParser, *, help: str = '') -> None:
    """Declare ``--config-file`` and ``--config-dir``. The values of both are appended to ``args.config_file``."""
    for option, kind in (('--config-file', 'file'), ('--config-dir', 'directory of *.conf files')):
        parser.add_argument(
            option,
            dest='config_file',
            metavar='PATH',
            action='append',
            default=[],
            help=f'configuration {kind}; may be repeated, the last one has precedence{help}',
        )


def split_arguments(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The paths of ``--config-file`` and ``--config-dir`` in their order, and the rest of ``argv``."""
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    known, rest = parser.parse_known_args(argv)
    return known.config_file, rest


def to_global_conf(paths: Sequence[str]) -> dict[str, str]:
    """The ``global_conf`` that names ``paths``. For no paths it is {}: then the default file is read."""
    return {'config_file': ','.join(paths)} if paths else {}


def load(global_conf: Mapping[str, str], opts: Sequence[cfg.Opt], group: str = 'DEFAULT') -> cfg.ConfigOpts:
    """Return a ConfigOpts with ``opts`` in ``[group]``, and maybe with other options too.

    If a value is wrong, raises ConfigError. Its text names the option, the files, the wrong value and right values.
    """
    paths = files(global_conf)
    parsed = _parsed_files(paths)
    if not opts:
        return parsed.conf
    oslo_group = None if group == 'DEFAULT' else group
    try:
        parsed.conf.register_opts(opts, group=oslo_group)
    except cfg.DuplicateOptError:
        # Another module declares the same name differently, for example with another help text.
        parsed = _parse_files(paths)
        parsed.conf.register_opts(opts, group=oslo_group)
    _fetch_secrets(parsed, opts, group)
    from_file = {name for secret_group, name in parsed.from_file if secret_group == group}
    _check(parsed.conf if oslo_group is None else parsed.conf[group], opts, _where(group, paths), from_file)
    return parsed.conf


def load_group(global_conf: Mapping[str, str], opts: Sequence[cfg.Opt], group: str) -> cfg.ConfigOpts:
    """Like :func:`load`, for options that a library declares. ``[DEFAULT]`` is treated like every other group.

    So the values of ``[DEFAULT]`` are attributes of ``conf['DEFAULT']``, and do not collide with this package's
    options of the same names.
    """
    paths = files(global_conf)
    conf = _parsed_files(paths).conf
    conf.register_opts(opts, group=group)
    _check(conf[group], opts, _where(group, paths))
    return conf


def _parsed_files(paths: Sequence[str]) -> _ParsedFiles:
    cache = _PARSED.get()
    if cache is None:
        return _parse_files(paths)
    key = tuple(paths)
    if key not in cache:
        cache[key] = _parse_files(paths)
    return cache[key]


def _parse_files(paths: Sequence[str]) -> _ParsedFiles:
    conf = cfg.ConfigOpts()
    parse(conf, paths)
    return _ParsedFiles(conf)


def parse(conf: cfg.ConfigOpts, paths: Sequence[str], args: Sequence[str] = (), *, program: str | None = None) -> None:
    """Parse ``paths`` and the command line ``args`` into ``conf``.

    Raises ConfigError for a missing, unreadable or malformed file. ``program`` is the name for the texts of ``--help``
    and ``--version``.
    """
    for path in paths:
        try:
            is_file = stat.S_ISREG(os.stat(path).st_mode)
        except PermissionError:
            raise _cannot_read('config_file', path) from None
        except OSError:
            is_file = False
        if not is_file:
            raise ConfigError(f'config_file: {path} is no file or directory; name one that exists')
    try:
        conf(
            args=list(args), project='metadata_wsgi', prog=program, version=version('metadata_wsgi'),
            default_config_files=list(paths), default_config_dirs=[],
        )  # fmt: skip
    except (cfg.RequiredOptError, cfg.NoSuchOptError, cfg.TemplateSubstitutionError):
        pass  # check() raises a ConfigError with the option's help text; a $ in a value causes the last two
    except cfg.ConfigFilesPermissionDeniedError as error:
        raise _cannot_read('config_file', error.config_files[0]) from None
    except cfg.ConfigFileParseError:
        raise ConfigError(f'{", ".join(paths)}: not a configuration file{_parse_error_location(paths)}') from None
    except (cfg.Error, ValueError) as error:
        raise ConfigError(f'{", ".join(paths) or "no configuration file"}: {error}') from error


def _cannot_read(option: str, path: str) -> ConfigError:
    """The ConfigError for a file or directory that this process has no permission to read."""
    while path != '/' and not os.access(os.path.dirname(path), os.X_OK, effective_ids=True):
        path = os.path.dirname(path)
    try:
        user: str = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        user = str(os.geteuid())
    found = os.stat(path)
    is_directory = stat.S_ISDIR(found.st_mode)
    needed = stat.S_IRGRP | (stat.S_IXGRP if is_directory else 0)
    if found.st_gid != 0 and found.st_mode & needed == needed:
        # The group is another service's, for example 0640 root:neutron. That service must be able to read it too.
        advice = f'usermod --append --groups {_group_name(found.st_gid)} {user}, and restart the service'
    else:
        advice = f'chgrp {_group_name(os.getegid())} {path}; chmod {"750" if is_directory else "640"} {path}'
    return ConfigError(f'{option}: {path}: the user {user} of this process cannot read it; {advice}')


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _fetch_secrets(parsed: _ParsedFiles, opts: Sequence[cfg.Opt], group: str) -> None:
    """Set each secret option without a value from the secret's own file or from a systemd credential."""
    declared = {opt.name for opt in opts}
    values = parsed.conf if group == 'DEFAULT' else parsed.conf[group]
    for opt in opts:
        if not opt.secret or f'{opt.name}_file' not in declared or (group, opt.name) in parsed.from_file:
            continue
        path = values[f'{opt.name}_file']
        try:
            value = values[opt.dest]
        except (cfg.Error, ValueError):
            continue  # check() raises the ConfigError
        if path and value:
            raise ConfigError(f'{opt.name} and {opt.name}_file are both set in [{group}]; keep one of them')
        credential = os.path.join(os.environ.get('CREDENTIALS_DIRECTORY') or '/nonexistent', opt.name)
        if not path and not value and os.path.exists(credential):
            path = credential
        if path:
            secret = _read_secret(path, opt.name)
            parsed.conf.set_override(opt.name, secret, None if group == 'DEFAULT' else group)
            parsed.from_file.add((group, opt.name))


def _read_secret(path: str, name: str) -> str:
    try:
        with open(path, encoding='utf-8') as file:
            text = file.read().rstrip('\r\n')
    except PermissionError:
        raise _cannot_read(f'{name}_file', os.path.abspath(path)) from None
    except OSError as error:
        raise ConfigError(f'{name}_file = {path}: {error.strerror}') from error
    except UnicodeDecodeError:
        raise ConfigError(f'{name}_file = {path}: is not a text file') from None
    if not text:
        raise ConfigError(f'{name}_file = {path}: is empty')
    return text


def check(conf: cfg.ConfigOpts, opts: Iterable[cfg.Opt], group: str, paths: Sequence[str]) -> None:
    """Read each of ``opts`` once, so that a wrong value fails at start."""
    _check(conf if group == 'DEFAULT' else conf[group], opts, _where(group, paths))


def _where(group: str, paths: Sequence[str]) -> str:
    return f'[{group}] of {", ".join(paths) or "no configuration file"}'


def _check(values: Any, opts: Iterable[cfg.Opt], where: str, from_file: Collection[str] = ()) -> None:
    names = {opt.name for opt in opts}
    for opt in opts:
        try:
            value = values[opt.dest]
        except (cfg.Error, ValueError) as error:
            # The text of oslo.config contains the value, which may be a secret.
            reason = (
                'cannot be used (in a value $ is written $$)'
                if opt.secret
                else str(error).partition(' is not valid: ')[2] or str(error)
            )
            raise ConfigError(f'{opt.name} in {where}: {reason}') from (None if opt.secret else error)
        if opt.required and value in (None, '', []):
            raise ConfigError(f'{opt.name} is missing from {where}. It is: {opt.help}')
        # A secret may contain white space and #. This is an error only if the secret can be in a file of its own.
        if opt.name not in from_file and (not opt.secret or f'{opt.name}_file' in names):
            check_comment(opt.name, value, where, is_secret=bool(opt.secret))


def check_comment(name: str, value: object, where: str, *, is_secret: bool = False) -> None:
    """Raise ConfigError if ``value`` has white space followed by #.

    oslo.config reads a comment after a value as a part of the value.
    """
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and re.search(r'\s#', text):
            advice = f'; if it belongs to the secret, use {name}_file' if is_secret else ''
            raise ConfigError(
                f'{name} in {where}: the value has white space followed by #. A comment must be on a line of its own'
                f'{advice}'
            )


def _parse_error_location(paths: Sequence[str]) -> str:
    """The number of the line that cannot be parsed, and the reason. The line itself may contain a secret."""
    for path in paths:
        try:
            cfg.ConfigParser(path, {}).parse()
        except cfg.ParseError as error:
            return f': {path}: {error.msg} at line {error.lineno}'
        except (OSError, UnicodeDecodeError):
            continue
    return ''
