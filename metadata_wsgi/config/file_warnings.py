# SPDX-License-Identifier: Apache-2.0
"""Warnings about the operator's configuration files: misspelt names, and secrets that every user can read.

oslo.config ignores an unknown name. An unknown name is no error in this package either, because the same files have
options of Neutron. If an unknown name resembles an option of this package, a warning is logged.
"""

from __future__ import annotations

import difflib
import logging
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import entry_points

from oslo_config import cfg

from metadata_wsgi.config.config_files import files
from metadata_wsgi.errors import ConfigError

LOG = logging.getLogger(__name__)


CREDENTIAL_SECTIONS = frozenset({'DEFAULT', 'quantum', 'neutron', 'keystone_authtoken'})


CREDENTIAL_SECRETS = frozenset({'password', 'application_credential_secret', 'client_secret'})
"""Secret options of keystoneauth's plugins. This package does not declare them."""


def world_readable_secrets(paths: Iterable[str], known: Iterable[tuple[str, Sequence[cfg.Opt]]]) -> list[str]:
    """One sentence for each file that contains a secret and that every user can read.

    The function checks ``paths``, and the files that an option ``NAME_file`` names. ``known`` are (group, options)
    pairs. The secret options of keystoneauth's plugins are checked too. A file without a secret may be readable.
    """
    names = {opt.name for _, opts in known for opt in opts if opt.secret}
    sentences = []
    for path in paths:
        values = _values_of(path)
        with_secret = (
            [path]
            if any(
                value and (name in names or (section in CREDENTIAL_SECTIONS and name in CREDENTIAL_SECRETS))
                for section, name, value in values
            )
            else []
        )
        with_secret += [
            value for _, name, value in values if name.removesuffix('_file') in names and name.endswith('_file')
        ]
        for secret_file in with_secret:
            try:
                mode = stat.S_IMODE(os.stat(secret_file).st_mode)
            except OSError:
                continue  # load() raises the ConfigError
            if mode & stat.S_IROTH:
                sentences.append(
                    f'{secret_file} contains a secret and every user can read it (mode {mode:04o}); '
                    f'chmod o-r {secret_file}, and let the group of the agent read it (chgrp)'
                )
    return sentences


def _values_of(path: str) -> list[tuple[str, str, str]]:
    """(section, name, value) of each line ``name = value`` in the file."""
    section, values = 'DEFAULT', []
    with open(path, encoding='utf-8', errors='replace') as file:
        for line in map(str.strip, file):
            if line.startswith('['):
                section = line.strip('[]')
            elif '=' in line:
                name, _, value = line.partition('=')
                values.append((section, name.strip(), value.strip()))
    return values


def log_misspelt_names(global_conf: Mapping[str, str]) -> None:
    """Log a warning for each name in the files that is not an option of this package but resembles one."""
    for sentence in misspelt(files(global_conf), all_options()):
        LOG.warning('%s', sentence)


def all_options() -> list[tuple[str, list[cfg.Opt]]]:
    """Every option of the package, as (group, options) pairs."""
    found: list[tuple[str, list[cfg.Opt]]] = entry_points(group='oslo.config.opts')['metadata_wsgi'].load()()
    return found


def misspelt(paths: Sequence[str], known: Iterable[tuple[str, Sequence[cfg.Opt]]]) -> list[str]:
    """One sentence for each name in ``paths`` that is not an option in ``known`` but resembles one.

    ``known`` are (group, options) pairs. Similar names of Quantum, Neutron and Nova are in ``KNOWN_FOREIGN_OPTIONS``
    and are not reported. Other programs may have more such names, so a sentence is a hint and not an error.
    """
    sentences = []
    names: dict[str, set[str]] = {}
    for group, opts in known:
        for opt in opts:
            for group_name, name in [(group, opt.name), *((d.group or group, d.name) for d in opt.deprecated_opts)]:
                names.setdefault(group_name, set()).update({name or opt.name, (name or opt.name).replace('-', '_')})
    for path in paths:
        for group, written in _option_names(path):
            ours = names.get(group, set())
            if not ours or written in ours or written in KNOWN_FOREIGN_OPTIONS:
                continue
            close = difflib.get_close_matches(written, sorted(ours), n=1, cutoff=0.85)
            if close:
                sentences.append(f'{written} in [{group}] of {path} is not an option; did you mean {close[0]}?')
    return sentences


KNOWN_FOREIGN_OPTIONS = frozenset(
    {
        'metadata_port',
        'metadata_access_mark',
        'metadata_proxy_shared_secrets',
        'enable_metadata_proxy',
        'enable_metadata_network',
        'auth_urls',
        'auth_uri',
        'nova_metadata_url',
        # neutron.conf of Juno and Kilo: notifications to Nova.
        'nova_admin_tenant_name',
        'nova_admin_tenant_id',
        'nova_admin_username',
        'nova_admin_password',
        'nova_admin_auth_url',
        'nova_region_name',
        # nova.conf of Grizzly and Havana, on a host that runs all services.
        'quantum_metadata_proxy_shared_secret',
        'neutron_metadata_proxy_shared_secret',
    }
)
"""Options of other programs in the same files whose names resemble options of this package."""


def _option_names(path: str) -> list[tuple[str, str]]:
    sections: dict[str, dict[str, list[str]]] = {}
    try:
        cfg.ConfigParser(path, sections).parse()
    except cfg.ParseError as error:
        raise ConfigError(f'{path}: not a configuration file: {error.msg} at line {error.lineno}') from None
    except OSError as error:
        raise ConfigError(f'{path}: not a configuration file: {error}') from error
    return [(group, name) for group, values in sections.items() for name in values]
