# SPDX-License-Identifier: Apache-2.0
"""Checks, once at start, that an earlier filter writes each environ key that a filter of the pipeline reads.

A filter (and the app at the end) declares the keys that it reads in ``REQUIRES`` and the keys that it writes in
``PROVIDES``. Both are frozensets of keys from :mod:`metadata_wsgi.pipeline.environ_keys`. A filter of another package
that uses none of these keys needs neither. But its inner app must be an attribute ``app``, ``application`` or
``middleware_wraps`` (webob), as in nearly all filters. If the order is wrong, the error message names the two filters.
No filter is added or moved.
"""

from __future__ import annotations

from typing import Any

from metadata_wsgi.errors import ConfigError
from metadata_wsgi.pipeline import environ_keys

INNER_ATTRIBUTES = ('app', 'application', 'middleware_wraps')

# The filter of the default paste file that writes each key, for the error message.
PROVIDED_BY = {
    environ_keys.REQUEST_ID: 'request_id',
    environ_keys.DEADLINE: 'deadline',
    environ_keys.SOURCE: 'header_source',
    environ_keys.CLIENT_IS_PROXY: 'header_source',
    environ_keys.INSTANCE: 'instance',
    environ_keys.SIGNED_IDENTITY: 'signature',
}


def chain(app: Any) -> list[Any]:
    """The filters of a pipeline in the order of a request, and at the end the app of the pipeline."""
    found = [app]
    while (inner := _inner(found[-1])) is not None:
        if any(inner is seen for seen in found):
            raise ConfigError(f'the pipeline wraps itself at {name(inner)}')
        found.append(inner)
    return found


def check(app: Any) -> None:
    """Raise ConfigError if a filter of the pipeline ``app`` reads a key that no earlier filter writes."""
    links = chain(app)
    end = links[-1]
    if not hasattr(end, 'REQUIRES'):
        raise ConfigError(
            f'{name(end)} seems to be the end of the pipeline: if it is a filter, its inner app must be an '
            f'attribute named app; if it is the app, it must have REQUIRES (frozenset() if it reads no key)'
        )
    written: set[str] = set()
    for position, link in enumerate(links):
        for key in sorted(getattr(link, 'REQUIRES', frozenset()) - written):
            raise ConfigError(_error_message(link, key, links[position + 1 :]))
        written |= getattr(link, 'PROVIDES', frozenset())


def name(link: Any) -> str:
    """The name of a filter in messages: for a filter of this package the name of its file, else module and class."""
    kind = link if hasattr(link, '__qualname__') else type(link)
    module, _, last = kind.__module__.rpartition('.')
    ours = module.partition('.')[0] == __name__.partition('.')[0]
    return last if ours and last != 'app' else f'{kind.__module__}.{kind.__qualname__}'


def _error_message(link: Any, key: str, later: list[Any]) -> str:
    reader = name(link)
    for other in later:
        if key in getattr(other, 'PROVIDES', frozenset()):
            writer = name(other)
            return f'{reader} reads {key}, which {writer} writes only after it: put {writer} before {reader}'
    writer = PROVIDED_BY.get(key, 'that writes it')
    return f'{reader} reads {key}, which no filter before it writes: put the filter {writer} before it'


def _inner(link: Any) -> Any:
    for attribute in INNER_ATTRIBUTES:
        inner = getattr(link, attribute, None)
        if callable(inner):
            return inner
    return None
