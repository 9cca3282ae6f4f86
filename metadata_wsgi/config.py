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
"""

from __future__ import annotations

import difflib
import os
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
    check(conf, opts, group, paths)
    return conf


def parse(conf: cfg.ConfigOpts, paths: Sequence[str], args: Sequence[str] = ()) -> None:
    """Let ``conf`` read ``paths``; a file that is missing or no ini file is a ConfigError."""
    for path in paths:
        if not os.path.isfile(path):
            raise ConfigError(f'config_file: {path} is no file; name one that exists')
    try:
        conf(args=list(args), project='metadata_wsgi', default_config_files=list(paths), default_config_dirs=[])
    except cfg.RequiredOptError:
        pass  # check says it, with what the option is for
    except cfg.ConfigFileParseError as error:
        raise ConfigError(f'{", ".join(paths)}: not a configuration file: {error}') from error
    except (cfg.Error, ValueError) as error:
        raise ConfigError(f'{", ".join(paths) or "no configuration file"}: {error}') from error


def check(conf: cfg.ConfigOpts, opts: Iterable[cfg.Opt], group: str, paths: Sequence[str]) -> None:
    """Read each of ``opts`` once, so that a wrong value is found now and not in a request."""
    where = f'[{group}] of {", ".join(paths) or "no configuration file"}'
    for opt in opts:
        try:
            value = conf[opt.dest] if group == 'DEFAULT' else conf[group][opt.dest]
        except (cfg.Error, ValueError) as error:
            # oslo.config's own text has the value, which for a secret is nobody's business.
            why = 'is of the wrong kind' if opt.secret else str(error).partition(' is not valid: ')[2] or str(error)
            raise ConfigError(f'{opt.name} in {where}: {why}') from (None if opt.secret else error)
        if opt.required and value in (None, '', []):
            raise ConfigError(f'{opt.name} is missing from {where}. It is: {opt.help}')


def refuse_misspelt(global_conf: Mapping[str, str]) -> None:
    """Raise ConfigError for the first name in the files that is nobody's option but looks like one of ours."""
    published = entry_points(group='oslo.config.opts')['metadata_wsgi'].load()
    for sentence in misspelt(files(global_conf), published()):
        raise ConfigError(sentence)


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
    except (cfg.ParseError, OSError) as error:
        raise ConfigError(f'{path}: not a configuration file: {error}') from error
    return [(group, name) for group, values in sections.items() for name in values]
