# SPDX-License-Identifier: Apache-2.0
"""Loads a pipeline from the paste file. A pipeline that cannot work is an error.

The paste file lists the filters in the order in which a request passes them. If the file has an error (an unknown
filter, an unknown option of a filter, a wrong order), the program does not start and prints one sentence.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from paste.deploy import loadapp, loadwsgi

from metadata_wsgi.config import config_files
from metadata_wsgi.errors import ConfigError
from metadata_wsgi.pipeline import order

DEFAULT_PASTE_FILES = (
    os.path.join(sys.prefix, 'etc', 'metadata_wsgi', 'api-paste.ini'),
    str(Path(__file__).resolve().parents[2] / 'etc' / 'api-paste.ini'),
    '/etc/metadata_wsgi/api-paste.ini',
)

ONLY_CHECK = 'metadata_wsgi.only_check'
"""A key of ``global_conf``. With it the pipeline is loaded to show or check it, perhaps by another user than that of
the agent: a filter must change nothing on this host."""


def default_paste_file() -> str:
    """The path of the paste file that is installed with the package."""
    for path in DEFAULT_PASTE_FILES:
        if os.path.exists(path):
            return path
    raise ConfigError(
        f'metadata_paste_config is not set and none of {", ".join(DEFAULT_PASTE_FILES)} exists; name the paste file'
    )


def load(
    path: str, name: str = 'agent', global_conf: Mapping[str, str] | None = None, *, only_check: bool = False
) -> Any:
    """Load the WSGI application ``name`` of the paste file at ``path`` and check its order. Raises ConfigError.

    With ``only_check`` nothing is changed on this host (``ONLY_CHECK``).

    ``global_conf`` is added to ``[DEFAULT]`` of the file. If both have a key with different values, this is an error,
    because paste would silently use the value of the file.
    """
    path = os.path.abspath(path)
    if not os.path.isfile(path):
        raise ConfigError(f'metadata_paste_config = {path}: there is no such file; name the paste file')
    global_conf = dict(global_conf or {})
    _check_conflicting_defaults(path, global_conf)
    if only_check:
        global_conf[ONLY_CHECK] = 'true'
    with config_files.parsed_once():
        try:
            app = loadapp(f'config:{path}', name=name, global_conf=global_conf)
        except ConfigError as error:
            raise ConfigError(f'{path}: {error}') from error
        except (LookupError, TypeError, ValueError, ImportError, AttributeError) as error:
            raise ConfigError(f'{path}: {_describe_paste_error(error)}') from error
        order.check(app)
    return app


def _check_conflicting_defaults(path: str, global_conf: Mapping[str, str]) -> None:
    try:
        defaults = loadwsgi.ConfigLoader(path).parser.defaults()
    except Exception as error:  # any parser error, and paste re-raises some as types of its own
        raise ConfigError(f'{path}: not a paste file: {error}') from error
    for key, value in global_conf.items():
        if key in defaults and defaults[key] != value:
            raise ConfigError(
                f'{path}: {key} = {defaults[key]} in [DEFAULT], but {value} was given on the command line; '
                'keep one of them'
            )


def _describe_paste_error(error: Exception) -> str:
    """One sentence for an exception of paste, with the closest valid name if there is one."""
    text = ' '.join(str(error).split())
    if option := re.search(r"got an unexpected keyword argument '([^']+)'", text):
        return f'{option[1]} is not an option of this filter in the paste file; write it to the configuration file'
    if missing := re.search(r"Entry point '([^']+)' not found in egg '?([^' ]+)", text):
        names = sorted({ep.name for kind in ('filter', 'app') for ep in entry_points(group=f'paste.{kind}_factory')})
        close = difflib.get_close_matches(missing[1], names, n=1) or [f'one of {", ".join(names)}']
        return f'there is no filter {missing[1]} in {missing[2]}; did you mean {close[0]}?'
    if section := re.search(r"No section '?([^' ]+)'? \(prefixed by", text):
        name = section[1]
        return f'there is no section for {name}: write [filter:{name}] with a use line, or remove it from the pipeline'
    return text or type(error).__name__
