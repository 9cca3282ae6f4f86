# SPDX-License-Identifier: Apache-2.0
import pytest

from metadata_wsgi.http import client as http_client
from tests.rawserver import RawServer


@pytest.fixture(params=['tcp', 'unix'])
def served(request, tmp_path):
    """A function: the scripts of a server -> the server and a client of it."""
    servers = []

    def serve(*scripts):
        server = RawServer(*scripts, path=str(tmp_path / 'socket') if request.param == 'unix' else None)
        servers.append(server)
        if request.param == 'unix':
            return server, http_client.unix_client(str(tmp_path / 'socket'))
        client = http_client.tcp_client('127.0.0.1', server.port)
        return server, client

    yield serve
    for server in servers:
        server.close()
