# SPDX-License-Identifier: Apache-2.0
"""``one_hop.py PORT CONFIG_FILE``: the pipeline one_hop on loopback, where every guest is behind router-a.

Server, worker and pipeline are the real ones; only that the socket came from a keeper is made up.
"""

import sys

from metadata_wsgi import context, pipeline, server, sockets
from tests.cloud import ROUTER, SHIPPED


def application(conf_file):
    from_guests = pipeline.load(str(SHIPPED), 'one_hop', {'config_file': conf_file})

    def app(environ, start_response):
        return from_guests({**environ, context.NAMESPACE: context.Namespace(ROUTER)}, start_response)

    return app


if __name__ == '__main__':
    server.Server(
        lambda: application(sys.argv[2]),
        [sockets.tcp_listener('127.0.0.1', int(sys.argv[1]))],
        settings=lambda: {'workers': 1},
        name='one_hop',
    ).run()
