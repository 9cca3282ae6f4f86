# SPDX-License-Identifier: Apache-2.0
"""The keeper as systemd starts it, with a socket of the test's in the place of systemd's."""

import socket
import struct

from metadata_wsgi.keeper import admin_client


def test_it_says_that_it_is_ready_when_it_can_be_asked(programs, cloud, tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / 'notify'))
        systemd.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        systemd.settimeout(20)
        monkeypatch.setenv('NOTIFY_SOCKET', str(tmp_path / 'notify'))
        program = programs('metadata-wsgi', 'keeper', '--config-file', cloud.conf_file)
        said, beside, _, _ = systemd.recvmsg(4096, socket.CMSG_SPACE(12))
        assert said == b'READY=1'
        # systemd listens to the unit's main process, and to no other.
        assert struct.unpack('iII', beside[0][2])[0] == program.pid
        with admin_client.connected(str(cloud.state_path)) as keeper:
            assert keeper.list() == ([], {})
