# SPDX-License-Identifier: Apache-2.0
"""``one_hop.py PORT CONFIG_FILE``: the pipeline one_hop on loopback, where every client is behind router-a.

Server, worker and pipeline are the real ones; only the namespace of the listener is set here, not by a keeper.
"""

import sys

from metadata_wsgi.net import listeners
from metadata_wsgi.pipeline import environ_keys, paste_loader
from metadata_wsgi.server import master
from tests.cloud import ROUTER, SHIPPED


def application(conf_file):
    pipeline = paste_loader.load(str(SHIPPED), 'one_hop', {'config_file': conf_file})

    def app(environ, start_response):
        return pipeline({**environ, environ_keys.NAMESPACE: environ_keys.Namespace(ROUTER)}, start_response)

    return app


if __name__ == '__main__':
    master.Server(
        lambda: application(sys.argv[2]),
        [listeners.tcp_listener('127.0.0.1', int(sys.argv[1]))],
        settings=lambda: {'workers': 1},
        name='one_hop',
    ).run()
