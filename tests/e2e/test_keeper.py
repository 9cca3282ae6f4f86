# SPDX-License-Identifier: Apache-2.0
"""The keeper as systemd starts it; the test has the notification socket."""

import socket
import struct

from metadata_wsgi.keeper import admin_client


def test_keeper_notifies_systemd_when_it_accepts_requests(programs, cloud, tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / 'notify'))
        systemd.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        systemd.settimeout(20)
        monkeypatch.setenv('NOTIFY_SOCKET', str(tmp_path / 'notify'))
        program = programs('metadata-wsgi', 'keeper', '--config-file', cloud.conf_file)
        text, ancillary, _, _ = systemd.recvmsg(4096, socket.CMSG_SPACE(12))
        assert text == b'READY=1\nSTATUS=0 sockets in namespaces; workers: none'
        # systemd accepts notifications of the main process only.
        assert struct.unpack('iII', ancillary[0][2])[0] == program.pid
        with admin_client.connect(str(cloud.state_path)) as keeper:
            assert keeper.list() == ([], {})
