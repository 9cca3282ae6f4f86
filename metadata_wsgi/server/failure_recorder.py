# SPDX-License-Identifier: Apache-2.0
"""Records the failed requests of a worker in a table. The command ``metadata-wsgi status --failures`` reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metadata_wsgi.failures.shared_memory import FailureMemory
from metadata_wsgi.failures.table import FailureTable
from metadata_wsgi.pipeline import environ_keys
from metadata_wsgi.pipeline.outcome import is_local_request

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment


class FailureRecorder:
    """The recorder of one worker. ``memory`` is None if the kernel has no memfd; then nothing is published."""

    def __init__(self, memory: FailureMemory | None, table: FailureTable | None = None) -> None:
        self.table = table or FailureTable()
        self._memory = memory

    def record(self, environ: WSGIEnvironment) -> None:
        """Count the FAILURE of an instance's request. Requests of this host, such as health checks, are not counted."""
        source: environ_keys.Source | None = environ.get(environ_keys.SOURCE)
        if source is None and is_local_request(environ):
            return
        failure: environ_keys.Failure = environ[environ_keys.FAILURE]
        namespace = source or environ.get(environ_keys.NAMESPACE) or environ_keys.Namespace()
        instance: environ_keys.Instance | None = environ.get(environ_keys.INSTANCE)
        self.table.add(
            status=failure.status,
            reason=failure.reason,
            path=environ.get('PATH_INFO', ''),
            kind='router' if namespace.router_id else 'network' if namespace.network_id else '',
            namespace_id=namespace.router_id or namespace.network_id or '',
            address=source.address if source else environ.get('REMOTE_ADDR', ''),
            instance_id=instance.instance_id if instance else '',
        )

    def publish(self) -> None:
        """If the table has changed, write it to the shared memory that ``metadata-wsgi status`` reads."""
        if self.table.has_changed and self._memory is not None:
            self.table.has_changed = False
            self._memory.write(self.table.rows())
