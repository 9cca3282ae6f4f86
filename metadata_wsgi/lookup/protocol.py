# SPDX-License-Identifier: Apache-2.0
"""The interface of an instance lookup, and the loader of the one that the option ``directory`` names.

A lookup is any class with ``find``. It decides nothing, retries nothing and knows no request: the filters do that. Its
factory takes paste's ``global_conf`` and the keyword ``networks_cache``, which it may ignore, and is published as an
entry point of the group ``metadata_wsgi.directories``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, Protocol, cast, runtime_checkable

from oslo_config import cfg

from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import ConfigError
from metadata_wsgi.pipeline.environ_keys import Instance, Source

GROUP = 'metadata_wsgi.directories'

OPTS = [
    cfg.StrOpt(
        'directory',
        default='quantum',
        help='The lookup that finds the instance: neutron (or quantum, the same), static (a YAML file), or '
        'another that is installed as metadata_wsgi.directories.',
    ),
]
"""Options of the filters that have a lookup."""

OnQuery = Callable[[str, float, int], object]
"""Called after each query of a lookup: the query, its duration in seconds, the number of results."""


class InstanceLookup(Protocol):
    """Finds instances by address. Shared by all threads of a worker."""

    def find(self, source: Source, deadline: Deadline) -> Sequence[Instance]:
        """All instances that match ``source``; empty when none does.

        Raises LookupUnavailable when a retry may succeed (the caller retries), else InstanceLookupError. Returns or
        raises before ``deadline``.
        """


@runtime_checkable
class ChecksVisibility(Protocol):
    """A lookup that can check whether it sees the instances of all projects."""

    def probe(self, deadline: Deadline) -> object:
        """A sentence about what it sees, as ``str``. Raises as ``find`` does where it would find no instance."""


@runtime_checkable
class ReportsQueries(Protocol):
    """A lookup whose queries can be watched by setting ``on_query``."""

    on_query: OnQuery


@runtime_checkable
class ReportsOtherPorts(Protocol):
    """A lookup whose ``on_other_port`` can be set: called with a sentence about each port that has the address but
    belongs to no instance."""

    on_other_port: Callable[[str], object]


@runtime_checkable
class HasLookup(Protocol):
    """A filter with a lookup."""

    lookup: InstanceLookup


class StepCache(Protocol):
    """A cache for one step of a lookup, as the query for the networks of a router."""

    def __call__(self, key: Hashable, load: Callable[[Deadline], Any], deadline: Deadline) -> Any:
        """The cached value of ``key``, else the one that ``load`` returns; one load for concurrent requests."""

    def refresh(self, key: Hashable, doubted: Any, load: Callable[[Deadline], Any], deadline: Deadline) -> Any:
        """The value of ``key`` now that the cached value ``doubted`` may be wrong."""


class Factory(Protocol):
    """What an entry point of ``metadata_wsgi.directories`` names."""

    def __call__(self, global_conf: Mapping[str, str], *, networks_cache: StepCache | None = None) -> InstanceLookup:
        """A lookup made from its options. Raises ConfigError."""


def load(name: str, global_conf: Mapping[str, str], *, networks_cache: StepCache | None = None) -> InstanceLookup:
    """The lookup that is published under ``name``, made from its own options. Raises ConfigError."""
    published = entry_points(group=GROUP)
    try:
        factory = cast(Factory, published[name].load())
    except KeyError:
        known = ', '.join(sorted(published.names))
        raise ConfigError(f'directory = {name}: there is none; choose one of {known}') from None
    if networks_cache is None:
        return factory(global_conf)
    return factory(global_conf, networks_cache=networks_cache)


def lookup_of(link: object) -> InstanceLookup | None:
    """The lookup of the filter ``link``; None for filters without one."""
    return link.lookup if isinstance(link, HasLookup) else None


def probe_of(link: object) -> Callable[[Deadline], object] | None:
    """The visibility check of the lookup of the filter ``link``; None where there is none."""
    lookup = lookup_of(link)
    return lookup.probe if isinstance(lookup, ChecksVisibility) else None
