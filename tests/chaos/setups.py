# SPDX-License-Identifier: Apache-2.0
"""The setups of a host in which faults are injected."""

from __future__ import annotations

from pathlib import Path

from metadata_wsgi import limits
from tests.chaos import peer
from tests.chaos.host import MODES, SHARED, Host, faketime_library
from tests.chaos.installation import FORMER_VERSION, Installation, release_of_checkout, release_of_revision
from tests.chaos.peer import PeerHost

CACHED, FAKETIME = 'shared, lookup_cache', 'shared, libfaketime'
TWO_VERSIONS = tuple(f'{mode}, two versions' for mode in MODES)
SETUPS = (*MODES, CACHED, FAKETIME, *TWO_VERSIONS)
PEER = "haproxy and Neutron's agent"


def make_host(setup: str, directory: Path, former: str = '', deadline_s: float = limits.REQUEST_TIMEOUT_S) -> Host:
    """A host of one of ``SETUPS``, or the peer; not started.

    In ``TWO_VERSIONS`` it starts with the former version: the revision ``former`` of this repository, or this checkout.
    Both get the version number ``FORMER_VERSION``.
    """
    if setup == PEER:
        return PeerHost(directory)
    mode = next((mode for mode in MODES if setup.startswith(mode)), SHARED)
    installation = None
    if setup in TWO_VERSIONS:
        release = release_of_revision(former, FORMER_VERSION) if former else release_of_checkout(FORMER_VERSION)
        installation = Installation(directory / 'installation', release, release_of_checkout())
    return Host(
        directory, mode, cached=setup == CACHED, fake_clock=setup == FAKETIME, installation=installation,
        deadline_s=deadline_s,
    )  # fmt: skip


def missing(setup: str) -> str:
    """Why this machine cannot have a setup; '' if it can."""
    if setup == FAKETIME and not faketime_library():
        return 'libfaketime is not installed (the package faketime)'
    return peer.missing() if setup == PEER else ''
