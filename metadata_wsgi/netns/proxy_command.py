# SPDX-License-Identifier: Apache-2.0
"""The command line of a namespace proxy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from metadata_wsgi.config import state_paths
from metadata_wsgi.netns.target import AttachTarget


@dataclass(frozen=True, slots=True)
class ProxyCommand:
    """The command line of a namespace proxy. If ``socket`` is '', the program uses its default."""

    program: str = 'quantum-ns-metadata-proxy'
    state_path: str = '/var/lib/quantum'
    socket: str = ''
    log_dir: str = ''

    def pid_file(self, uuid: str) -> str:
        """The path of the pid file for the router or network ``uuid``."""
        return state_paths.pid_file(self.state_path, uuid)

    def argv(self, target: AttachTarget, port: int, hosts: Sequence[str] = ('',)) -> list[str]:
        """The command line, in the form of Grizzly's L3 agent. ``hosts``: the addresses to listen on; '' means all."""
        argv = [
            self.program,
            f'--pid_file={self.pid_file(target.uuid)}',
            f'--{target.kind}_id={target.uuid}',
            f'--state_path={self.state_path}',
            f'--metadata_port={port}',
            '--mode=process',
        ]
        if self.socket:
            argv.append(f'--metadata_proxy_socket={self.socket}')
        argv += [f'--metadata_host={host}' for host in hosts if host]
        if self.log_dir:
            argv += [f'--log-file=quantum-ns-metadata-proxy-{target.uuid}.log', f'--log-dir={self.log_dir}']
        return argv
