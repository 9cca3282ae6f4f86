# SPDX-License-Identifier: Apache-2.0
"""Attach to the keeper what start_ns_proxy asks for.

    feeder.py STATE_PATH MODE ASK ANSWER

Reads lines "NETNS ROUTER_ID PORT" from the named pipe ASK and writes ok, or what went wrong, to the named pipe
ANSWER. It stands where an L3 agent would: one process that stays, and asks the keeper for one router after the other.
"""

import os
import sys

from metadata_wsgi.errors import MetadataError
from metadata_wsgi.keeper import asking
from metadata_wsgi.keeper.protocol import Listener

state_path, mode, ask, answer = sys.argv[1:]
os.mkfifo(ask)
os.mkfifo(answer)
with asking.connected(state_path) as keeper:
    while True:
        with open(ask) as lines:
            wanted = [line.split() for line in lines]
        for namespace, router_id, port in wanted:
            try:
                keeper.attach(Listener(mode, namespace, int(port), router_id=router_id))
                word = 'ok'
            except MetadataError as error:
                word = str(error)
            with open(answer, 'w') as out:
                out.write(word + '\n')
