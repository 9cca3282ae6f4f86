# SPDX-License-Identifier: Apache-2.0
"""Connects the instruments of this process to Prometheus's files. An instrument that is not connected does nothing.

The files are opened at the first count. At this time a worker has dropped its privileges, so root opens none of the
files. A process that only loads the pipeline (the check before a reload) makes no files. ``check-config`` and
``explain`` send requests too, often as root. So that root opens no file, they disconnect the instruments after they
have loaded the pipeline.
"""

from __future__ import annotations

import errno
import logging
import os
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import product
from typing import Any

from metadata_wsgi import instruments
from metadata_wsgi.instruments import Counter, Histogram, Instrument
from metadata_wsgi.metrics import files

LOG = logging.getLogger(__name__)


def connect(directory: str) -> None:
    """Count in ``directory`` from now on. The files are opened at the first count.

    If they cannot be opened, an error is logged, and this process counts nothing from then on. A process can count in
    one directory only.
    """
    # If this variable is set when the library is imported, the counts of all processes are added up. It is imported
    # now, because a worker's user may have no access to Python's directory.
    os.environ['PROMETHEUS_MULTIPROC_DIR'] = directory
    import prometheus_client.mmap_dict  # noqa: F401

    for instrument in instruments.ALL:
        instrument.connect(_opener(instrument, directory))


def disconnect() -> None:
    """Count nothing from now on."""
    for instrument in instruments.ALL:
        instrument.connect(None)


def _opener(instrument: Instrument, directory: str) -> Callable[..., object]:
    def open_and_report(*args: Any) -> None:
        _open(directory)
        name = {'counter': 'add', 'histogram': 'observe', 'gauge': 'set'}[instrument.kind]
        getattr(instrument, name)(*args)

    return open_and_report


def _open(directory: str) -> None:
    disconnect()
    try:
        # The agent makes the directory, but a namespace proxy may start before the agent.
        os.makedirs(directory, mode=0o755, exist_ok=True)
        if os.geteuid() == 0 and os.stat(directory).st_uid != 0:
            # Its owner may have put links there, and the library follows them.
            raise PermissionError(errno.EPERM, 'it belongs to another user, and root opens no file there')
        with files.locked_to_write(directory):
            files.begin(directory)
            reporters = [_reporter(instrument) for instrument in instruments.ALL]
    except (OSError, ValueError, RuntimeError) as error:
        LOG.error('Nothing is counted for metrics: %s cannot be written: %s', directory, error)
        return
    for instrument, report in zip(instruments.ALL, reporters, strict=True):
        instrument.connect(report)
    instruments.BUILD_INFO.set(1, version('metadata_wsgi'), platform.python_version())


def _reporter(instrument: Instrument) -> Callable[..., object]:
    """The function that the instrument calls. Makes each series whose label values are known, with the value 0."""
    import prometheus_client

    registry = prometheus_client.CollectorRegistry()
    labels = tuple(instrument.labels)
    metric: Any
    if isinstance(instrument, Counter):
        metric = prometheus_client.Counter(instrument.name, instrument.help, labels, registry=registry)
    elif isinstance(instrument, Histogram):
        metric = prometheus_client.Histogram(
            instrument.name, instrument.help, labels, registry=registry, buckets=instruments.SECONDS
        )
    else:
        mode: Any = f'live{instrument.across}'
        metric = prometheus_client.Gauge(
            instrument.name, instrument.help, labels, registry=registry, multiprocess_mode=mode
        )
    methods: dict[tuple[str, ...], Callable[..., object]] = {}
    name = {'counter': 'inc', 'histogram': 'observe', 'gauge': 'set'}[instrument.kind]

    def method_of(values: tuple[str, ...]) -> Callable[..., object]:
        methods[values] = method = getattr(metric.labels(*values) if values else metric, name)
        return method

    # A gauge is made when its state is known, because 0 would be a state.
    if instrument.kind != 'gauge' and labels:
        for values in _known(list(instrument.labels.values())):
            method_of(values)
    if isinstance(instrument, Counter):
        return lambda *values: (methods.get(values) or method_of(values))()
    return lambda amount, *values: (methods.get(values) or method_of(values))(amount)


def _known(values: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    return list(product(*values))  # empty where a label has ANY value
