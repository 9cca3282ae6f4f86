# SPDX-License-Identifier: Apache-2.0
"""The interface of an instance lookup, and the loader of the lookup that the option ``directory`` names.

A lookup is any class with a method ``find``. It does not retry: the filter that calls it retries. The factory of a
lookup is an entry point of the group ``metadata_wsgi.directories``. The factory takes paste's ``global_conf`` and the
keyword argument ``networks_cache``, which it may ignore.
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
        help='The lookup that finds the instance: neutron (quantum is the same), static (a YAML file), or the name of '
        'another entry point of the group metadata_wsgi.directories.',
    ),
]
"""Options of the filters that have a lookup."""

OnQuery = Callable[[str, float, int], object]
"""Called after each query of a lookup, with the query, its duration in seconds and the number of results."""


class InstanceLookup(Protocol):
    """Finds instances by address. Shared by all threads of a worker."""

    def find(self, source: Source, deadline: Deadline) -> Sequence[Instance]:
        """All instances with the address of ``source`` behind its router or on its network; empty if there is none.

        Raises LookupUnavailable if a retry may succeed (the caller retries), InstanceLookupError if a retry cannot
        succeed. Returns or raises before ``deadline``.
        """


@runtime_checkable
class ChecksVisibility(Protocol):
    """A lookup that can check whether it sees the instances of all projects."""

    def probe(self, deadline: Deadline) -> object:
        """Do the check. ``str()`` of the result is a sentence for the operator.

        Raises LookupUnavailable or InstanceLookupError if the lookup cannot find any instance.
        """


@runtime_checkable
class ReportsQueries(Protocol):
    """A lookup that calls ``on_query`` after each query. The attribute may be replaced."""

    on_query: OnQuery


@runtime_checkable
class ReportsOtherPorts(Protocol):
    """A lookup that calls ``on_other_port`` for each port that has the address but belongs to no instance.

    The argument is a sentence for the operator. The attribute may be replaced.
    """

    on_other_port: Callable[[str], object]


@runtime_checkable
class HasLookup(Protocol):
    """A filter with a lookup."""

    lookup: InstanceLookup


class StepCache(Protocol):
    """A cache for one step of a lookup, for example the query for the networks of a router."""

    def __call__(self, key: Hashable, load: Callable[[Deadline], Any], deadline: Deadline) -> Any:
        """The cached value of ``key``, else the result of ``load``. Concurrent requests share one load."""

    def refresh(self, key: Hashable, doubted: Any, load: Callable[[Deadline], Any], deadline: Deadline) -> Any:
        """Load ``key`` again, because the cached value ``doubted`` may be wrong. Returns the new value."""


class Factory(Protocol):
    """The type of an entry point of the group ``metadata_wsgi.directories``."""

    def __call__(self, global_conf: Mapping[str, str], *, networks_cache: StepCache | None = None) -> InstanceLookup:
        """Make a lookup from its own options. Raises ConfigError if an option is wrong."""


def load(name: str, global_conf: Mapping[str, str], *, networks_cache: StepCache | None = None) -> InstanceLookup:
    """Make the lookup of the entry point ``name``. Raises ConfigError if there is none, or an option is wrong."""
    published = entry_points(group=GROUP)
    try:
        factory = cast(Factory, published[name].load())
    except KeyError:
        known = ', '.join(sorted(published.names))
        raise ConfigError(f'directory = {name}: there is no such lookup; choose one of {known}') from None
    if networks_cache is None:
        return factory(global_conf)
    return factory(global_conf, networks_cache=networks_cache)


def lookup_of(link: object) -> InstanceLookup | None:
    """The lookup of the filter ``link``; None for a filter without a lookup."""
    return link.lookup if isinstance(link, HasLookup) else None


def probe_of(link: object) -> Callable[[Deadline], object] | None:
    """The visibility check of the filter ``link``; None if it has no lookup, or its lookup has no check."""
    lookup = lookup_of(link)
    return lookup.probe if isinstance(lookup, ChecksVisibility) else None
