# SPDX-License-Identifier: Apache-2.0
"""Read options from the operator's oslo.config files, all of them, now.

The paste file carries order, these files carry values. Each part of the package declares its
options beside their use and calls :func:`load` with them; a file holds the options of all parts.

The files are those named by ``config_file`` in the paste file's ``[DEFAULT]`` or on the command line
(several, separated by commas: the last one wins), else the first that exists of ``SEARCHED``.

oslo.config alone would let three mistakes pass, so :func:`load` looks for them: a value outside its
bounds (it raises only when read), a required option that is not set (it reads as None), and a
misspelt name (it is ignored). A name that is merely unknown is no mistake: these files are shared
with Quantum and Neutron, whose options for other programs stand in them.

A secret need not stand in these files. Where ``NAME_file`` is declared beside a secret option ``NAME``, the
secret is read from that file, or from systemd's credential ``NAME`` (LoadCredential=), without the
line's end. Whatever is said here of a file or an option, its value is not.
"""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import entry_points

from oslo_config import cfg

from metadata_wsgi.errors import ConfigError

SEARCHED = (
    '/etc/metadata_wsgi/metadata_agent.ini',
    '/etc/quantum/metadata_agent.ini',
    '/etc/neutron/metadata_agent.ini',
)


def files(global_conf: Mapping[str, str]) -> list[str]:
    """The configuration files that ``global_conf`` (paste's ``[DEFAULT]``) names, or the default one."""
    named = global_conf.get('config_file', '')
    if named:
        return [os.path.abspath(name.strip()) for name in named.split(',') if name.strip()]
    return [path for path in SEARCHED if os.path.exists(path)][:1]


def load(global_conf: Mapping[str, str], opts: Sequence[cfg.Opt], group: str = 'DEFAULT') -> cfg.ConfigOpts:
    """Read ``opts`` of ``[group]`` and return the ConfigOpts that holds them, every value checked.

    Raises ConfigError that names the option, its value, the files and what would be right.
    """
    conf = cfg.ConfigOpts()
    conf.register_opts(opts, group=None if group == 'DEFAULT' else group)
    paths = files(global_conf)
    parse(conf, paths)
    fetch_secrets(conf, opts, group)
    check(conf, opts, group, paths)
    return conf


def parse(conf: cfg.ConfigOpts, paths: Sequence[str], args: Sequence[str] = ()) -> None:
    """Let ``conf`` read ``paths``; a file that is missing or no ini file is a ConfigError."""
    for path in paths:
        if not os.path.isfile(path):
            raise ConfigError(f'config_file: {path} is no file; name one that exists')
    try:
        conf(args=list(args), project='metadata_wsgi', default_config_files=list(paths), default_config_dirs=[])
    except (cfg.RequiredOptError, cfg.NoSuchOptError, cfg.TemplateSubstitutionError):
        pass  # check says it, of the option and with what it is for; the last two are a $ in a value
    except cfg.ConfigFileParseError:
        raise ConfigError(f'{", ".join(paths)}: not a configuration file{_where_broken(paths)}') from None
    except (cfg.Error, ValueError) as error:
        raise ConfigError(f'{", ".join(paths) or "no configuration file"}: {error}') from error


def fetch_secrets(conf: cfg.ConfigOpts, opts: Sequence[cfg.Opt], group: str = 'DEFAULT') -> None:
    """Give secret options that are not set the values of their files, or of systemd's credentials."""
    declared = {opt.name for opt in opts}
    for opt in opts:
        if not opt.secret or f'{opt.name}_file' not in declared:
            continue
        values = conf if group == 'DEFAULT' else conf[group]
        path = values[f'{opt.name}_file']
        try:
            value = values[opt.dest]
        except (cfg.Error, ValueError):
            continue  # check says so
        if path and value:
            raise ConfigError(f'{opt.name} and {opt.name}_file are both set in [{group}]; keep one of them')
        credential = os.path.join(os.environ.get('CREDENTIALS_DIRECTORY') or '/nonexistent', opt.name)
        if not path and not value and os.path.exists(credential):
            path = credential
        if path:
            conf.set_override(opt.name, _secret_in(path, opt.name), None if group == 'DEFAULT' else group)


def _secret_in(path: str, name: str) -> str:
    try:
        with open(path, encoding='utf-8') as file:
            text = file.read().rstrip('\r\n')
    except OSError as error:
        raise ConfigError(f'{name}_file = {path}: {error.strerror}') from error
    except UnicodeDecodeError:
        raise ConfigError(f'{name}_file = {path}: is no text') from None
    if not text:
        raise ConfigError(f'{name}_file = {path}: is empty')
    return text


def exposed(paths: Iterable[str], known: Iterable[tuple[str, Sequence[cfg.Opt]]]) -> list[str]:
    """One sentence for each of ``paths``, or of the secrets' files that they name, that every user can read.

    ``known`` are (group, options) pairs: a file without a secret may be open.
    """
    names = {opt.name for _, opts in known for opt in opts if opt.secret}
    sentences = []
    for path in paths:
        with open(path, encoding='utf-8', errors='replace') as file:
            pairs = [(line.partition('=')[0].strip(), line.partition('=')[2].strip()) for line in file]
        held = [path] if any(name in names and value for name, value in pairs) else []
        held += [value for name, value in pairs if name.removesuffix('_file') in names and name.endswith('_file')]
        for secret in held:
            try:
                mode = stat.S_IMODE(os.stat(secret).st_mode)
            except OSError:
                continue  # load says so
            if mode & stat.S_IROTH:
                sentences.append(
                    f'{secret} holds a secret and every user can read it (mode {mode:04o}); chmod o-r {secret}'
                )
    return sentences


def check(conf: cfg.ConfigOpts, opts: Iterable[cfg.Opt], group: str, paths: Sequence[str]) -> None:
    """Read each of ``opts`` once, so that a wrong value is found now and not in a request."""
    where = f'[{group}] of {", ".join(paths) or "no configuration file"}'
    for opt in opts:
        try:
            value = conf[opt.dest] if group == 'DEFAULT' else conf[group][opt.dest]
        except (cfg.Error, ValueError) as error:
            # oslo.config's own text has the value, which for a secret is nobody's business.
            why = (
                'cannot be used (in a value $ is written $$)'
                if opt.secret
                else str(error).partition(' is not valid: ')[2] or str(error)
            )
            raise ConfigError(f'{opt.name} in {where}: {why}') from (None if opt.secret else error)
        if opt.required and value in (None, '', []):
            raise ConfigError(f'{opt.name} is missing from {where}. It is: {opt.help}')


def refuse_misspelt(global_conf: Mapping[str, str]) -> None:
    """Raise ConfigError for the first name in the files that is nobody's option but looks like one of ours."""
    for sentence in misspelt(files(global_conf), published()):
        raise ConfigError(sentence)


def published() -> list[tuple[str, list[cfg.Opt]]]:
    """Every option of the package, as (group, options) pairs."""
    found: list[tuple[str, list[cfg.Opt]]] = entry_points(group='oslo.config.opts')['metadata_wsgi'].load()()
    return found


def misspelt(paths: Sequence[str], known: Iterable[tuple[str, Sequence[cfg.Opt]]]) -> list[str]:
    """One sentence for each name in ``paths`` that is none of ``known`` but looks like one of them.

    ``known`` are (group, options) pairs. Names that Quantum and Neutron themselves define and that
    happen to be close to ours are listed in ``FOREIGN``.
    """
    sentences = []
    names: dict[str, set[str]] = {}
    for group, opts in known:
        for opt in opts:
            for group_name, name in [(group, opt.name), *((d.group or group, d.name) for d in opt.deprecated_opts)]:
                names.setdefault(group_name, set()).update({name or opt.name, (name or opt.name).replace('-', '_')})
    for path in paths:
        for group, written in _names_in(path):
            ours = names.get(group, set())
            if not ours or written in ours or written in FOREIGN:
                continue
            close = difflib.get_close_matches(written, sorted(ours), n=1, cutoff=0.85)
            if close:
                sentences.append(f'{written} in [{group}] of {path} is no option; did you mean {close[0]}?')
    return sentences


def _where_broken(paths: Sequence[str]) -> str:
    """Which line cannot be parsed and why; not the line itself, as oslo.config has it: it may be a secret's."""
    for path in paths:
        try:
            cfg.ConfigParser(path, {}).parse()
        except cfg.ParseError as error:
            return f': {path}: {error.msg} at line {error.lineno}'
        except (OSError, UnicodeDecodeError):
            continue
    return ''


# Options of other programs that stand in the same files and resemble ours.
FOREIGN = frozenset(
    {
        'metadata_port',
        'metadata_access_mark',
        'metadata_proxy_shared_secrets',
        'enable_metadata_proxy',
        'enable_metadata_network',
        'auth_urls',
        'auth_uri',
        'nova_metadata_url',
    }
)


def _names_in(path: str) -> list[tuple[str, str]]:
    sections: dict[str, dict[str, list[str]]] = {}
    try:
        cfg.ConfigParser(path, sections).parse()
    except cfg.ParseError as error:
        raise ConfigError(f'{path}: not a configuration file: {error.msg} at line {error.lineno}') from None
    except OSError as error:
        raise ConfigError(f'{path}: not a configuration file: {error}') from error
    return [(group, name) for group, values in sections.items() for name in values]
