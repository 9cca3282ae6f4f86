# SPDX-License-Identifier: Apache-2.0
"""Removes secrets from a text that is given to other people: ``metadata-wsgi report``.

There are two steps. :func:`masked_lines` prints the values of this package's options that are not secret. It prints no
values of other options, because an option of Neutron may be secret too. Then :func:`mask` removes every secret of the
configuration files from the whole text, for example from log lines and command lines. :func:`mask` also finds a secret
in the encodings that programs use: base64, hexadecimal, percent-encoding, JSON and Python.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from urllib.parse import quote, quote_plus, unquote

from oslo_config import cfg

from metadata_wsgi.config.file_warnings import CREDENTIAL_SECRETS

MASK = '***'
NOT_OURS = '(not shown: an option of another program)'
MIN_SECRET = 4
"""A shorter secret is masked only as the value of its option: many words of the text would contain it."""

Known = Iterable[tuple[str, Sequence[cfg.Opt]]]
"""(group, options) pairs."""

_SOUNDS_SECRET = re.compile('secret|passw|token|credential|private|auth_key|apikey|api_key', re.IGNORECASE)
# User and password end at the last @ of the host part: libraries accept an @ in a password.
_USERINFO = re.compile(r'(?<=://)[^/\s]+(?=@)')
_AUTHORITY = re.compile(r'(?<=://)[^/\s]+')


def masked_lines(path: str, known: Known) -> list[str]:
    """The options of a configuration file, one per line, without comments, with masked secrets.

    Raises ParseError or OSError if the file cannot be read.
    """
    ours = {(group, name): opt for group, opts in known for opt in opts for name in _names(opt)}
    lines = []
    for group, values in _parse(path).items():
        lines.append(f'[{group}]')
        for name, written in values.items():
            opt = ours.get((group, name))
            for value in written:
                shown = NOT_OURS if opt is None else MASK if _is_secret(opt) else _USERINFO.sub(MASK, value)
                lines.append(f'{name} = {shown}')
    return lines


def secrets_in(paths: Iterable[str], known: Known) -> set[str]:
    """Every secret in the files, in the files that they name (``NAME_file``), and in systemd's credentials.

    Secrets are the values of this package's secret options, the values of other options with a name like ``password``,
    and passwords in URLs. A file that cannot be opened is skipped.
    """
    secret_names = {
        name for _, opts in known for opt in opts if opt.secret for name in _names(opt)
    } | CREDENTIAL_SECRETS
    found: set[str] = set()
    for path in paths:
        try:
            sections = _parse(path)
        except (cfg.ParseError, OSError, ValueError):
            # Each line counts as a secret, because a line that cannot be parsed may contain one.
            found |= {line.strip() for line in _read(path).splitlines()}
            continue
        for name, value in _values(sections):
            found |= _passwords_in_urls(value)
            if name.removesuffix('_file') in secret_names and name.endswith('_file'):
                found.add(_read(value).strip())
            elif name in secret_names or _SOUNDS_SECRET.search(name):
                found.add(value)
    directory = os.environ.get('CREDENTIALS_DIRECTORY')
    if directory and os.path.isdir(directory):
        found |= {_read(os.path.join(directory, name)).strip() for name in os.listdir(directory)}
    return {secret for secret in found if len(secret) >= MIN_SECRET}


def mask(text: str, secrets: Iterable[str]) -> str:
    """``text`` without the secrets, in all encodings of :func:`encodings`."""
    forms = {form for secret in secrets for form in encodings(secret)}
    # The longest first: one form may contain another.
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, MASK)
    return text


def encodings(secret: str) -> set[str]:
    """The secret itself, and its encodings."""
    data = secret.encode('utf-8', 'surrogateescape')
    forms = {secret, quote(secret), quote(secret, safe=''), quote_plus(secret), unquote(secret)}
    forms |= {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], repr(secret)[1:-1]}
    hexadecimal = binascii.hexlify(data).decode()
    forms |= {hexadecimal, hexadecimal.upper(), binascii.hexlify(data, ':').decode()}
    forms |= {form.lower() for form in forms if '%' in form}
    for start in range(3):
        # In the base64 of a longer text a secret begins at any of three positions. Its first and last characters
        # depend on the text beside the secret.
        padded = base64.b64encode(b'\0' * start + data).decode()
        # A character of base64 has 6 bits. Only characters that consist of bits of the secret are used.
        inner = padded[(8 * start + 5) // 6 : 8 * (start + len(data)) // 6]
        forms |= {inner, inner.replace('+', '-').replace('/', '_')}
    return {form for form in forms if len(form) >= MIN_SECRET}


def _parse(path: str) -> Mapping[str, Mapping[str, list[str]]]:
    sections: dict[str, dict[str, list[str]]] = {}
    cfg.ConfigParser(path, sections).parse()
    return sections


def _values(sections: Mapping[str, Mapping[str, list[str]]]) -> Iterator[tuple[str, str]]:
    return ((name, value) for values in sections.values() for name, written in values.items() for value in written)


def _names(opt: cfg.Opt) -> set[str]:
    names = {opt.name, *(old.name for old in opt.deprecated_opts if old.name)}
    return names | {name.replace('-', '_') for name in names}


def _is_secret(opt: cfg.Opt) -> bool:
    return bool(opt.secret) or bool(_SOUNDS_SECRET.search(opt.name) and not opt.name.endswith('_file'))


def _passwords_in_urls(value: str) -> set[str]:
    found: set[str] = set()
    for authority in _AUTHORITY.findall(value):
        # transport_url of oslo.messaging has several hosts, each with a user and a password.
        for part in (authority, *authority.split(',')):
            userinfo = part.rpartition('@')[0]
            password = userinfo.partition(':')[2] or userinfo
            found |= {password, unquote(password)}
    return found


def _read(path: str) -> str:
    try:
        with open(path, encoding='utf-8', errors='surrogateescape') as file:
            return file.read(1 << 20)
    except OSError:
        return ''
