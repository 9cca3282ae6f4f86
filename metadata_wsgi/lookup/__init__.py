# SPDX-License-Identifier: Apache-2.0
"""Who finds the instance: a directory answers which instances are at an address behind a router.

One file, one directory. ``instance`` asks it through the protocol below and decides what none or
several mean; a directory decides nothing, retries nothing and knows no request.

A directory of one's own is any class with ``find``; its factory takes paste's ``global_conf`` and is
published as an entry point of the group ``metadata_wsgi.directories``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, Protocol, cast

from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import ConfigError
from metadata_wsgi.pipeline.environ_keys import Instance, Source

GROUP = 'metadata_wsgi.directories'


class InstanceLookup(Protocol):
    """Knows which instance has which address. Shared by all threads of a worker."""

    def find(self, source: Source, deadline: Deadline) -> Sequence[Instance]:
        """All instances that fit ``source``; empty when none does.

        Raises LookupUnavailable when it cannot be known now (the caller asks again), InstanceLookupError
        when asking again is of no use. Returns or raises before ``deadline``.
        """


class Remember(Protocol):
    """Remembers steps of a lookup. A directory that has such steps has an attribute ``remember``, None until the
    filter ``cache`` sets it."""

    def __call__(self, key: Hashable, ask: Callable[[Deadline], Any], deadline: Deadline) -> Any:
        """What is remembered of ``key``, else what ``ask`` says, once for all who want to know it now."""

    def other(self, key: Hashable, than: Any, ask: Callable[[Deadline], Any], deadline: Deadline) -> Any:
        """What ``ask`` says now that ``than``, which was remembered, is in doubt."""


Factory = Callable[[Mapping[str, str]], InstanceLookup]


def load(name: str, global_conf: Mapping[str, str]) -> InstanceLookup:
    """The directory that is published under ``name``, made from its own options."""
    published = entry_points(group=GROUP)
    try:
        factory = cast(Factory, published[name].load())
    except KeyError:
        known = ', '.join(sorted(published.names))
        raise ConfigError(f'directory = {name}: there is none; choose one of {known}') from None
    return factory(global_conf)


def innermost(directory: Any) -> Any:
    """The directory that really asks, behind those that remember (their attribute ``inner``)."""
    while hasattr(directory, 'inner'):
        directory = directory.inner
    return directory


def probe_of(link: Any) -> Callable[[Deadline], Any] | None:
    """What asks the directory of the filter ``link`` whether it lets us see what we must, and raises as ``find`` does.

    None for other filters, and for directories that can always see.
    """
    return getattr(innermost(getattr(link, 'directory', None)), 'probe', None)
