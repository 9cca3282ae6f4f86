# SPDX-License-Identifier: Apache-2.0
"""Does every filter find what it reads? Asked once, at start, of the finished chain.

A filter (or the app at the end) says what it reads in ``REQUIRES`` and what it establishes in
``PROVIDES``, both frozensets of names from :mod:`metadata_wsgi.context`. A third-party filter that
reads no fact of ours may leave them out, but it must let us see what it wraps: as ``app``,
``application`` or ``middleware_wraps`` (webob's), as nearly all do. What cannot work is refused in a
sentence that names the two filters; nothing is reordered or added.
"""

from __future__ import annotations

from typing import Any

from metadata_wsgi.errors import ConfigError
from metadata_wsgi.pipeline import environ_keys

WRAPS = ('app', 'application', 'middleware_wraps')


def chain(app: Any) -> list[Any]:
    """The filters of a pipeline from the outermost inwards, and last the app that ends it."""
    found = [app]
    while (inner := _inner(found[-1])) is not None:
        if any(inner is seen for seen in found):
            raise ConfigError(f'the pipeline wraps itself at {name(inner)}')
        found.append(inner)
    return found


def check(app: Any) -> None:
    """Raise ConfigError if, in the chain that starts at ``app``, anything is read before it is there."""
    links = chain(app)
    end = links[-1]
    if not hasattr(end, 'REQUIRES'):
        raise ConfigError(
            f'{name(end)} ends the pipeline, as far as can be seen: if it is a filter, it must keep what it wraps in '
            f'an attribute named app; if it is the app, it must have REQUIRES (frozenset() if it reads no fact)'
        )
    known: set[str] = set()
    for position, link in enumerate(links):
        for fact in sorted(getattr(link, 'REQUIRES', frozenset()) - known):
            raise ConfigError(_complaint(link, fact, links[position + 1 :]))
        known |= getattr(link, 'PROVIDES', frozenset())


def name(link: Any) -> str:
    """What the operator calls this filter: its file's name for one of ours, else where its class lives."""
    kind = link if hasattr(link, '__qualname__') else type(link)
    module, _, last = kind.__module__.rpartition('.')
    ours = module.partition('.')[0] == __name__.partition('.')[0]
    return last if ours and last != 'app' else f'{kind.__module__}.{kind.__qualname__}'


def _complaint(link: Any, fact: str, later: list[Any]) -> str:
    here = name(link)
    for other in later:
        if fact in getattr(other, 'PROVIDES', frozenset()):
            late = name(other)
            return f'{here} reads {fact}, which {late} establishes only after it: put {late} before {here}'
    owner = OWNERS.get(fact, 'your own')
    return f'{here} reads {fact}, which no filter before it establishes: put one that does ({owner}) before it'


# For the complaint only: who in the shipped paste file establishes what.
OWNERS = {
    environ_keys.DEADLINE: 'deadline',
    environ_keys.SOURCE: 'header_source',
    environ_keys.FORWARDED: 'header_source',
    environ_keys.INSTANCE: 'instance',
    environ_keys.SIGNED: 'signature',
}


def _inner(link: Any) -> Any:
    for attribute in WRAPS:
        inner = getattr(link, attribute, None)
        if callable(inner):
            return inner
    return None
