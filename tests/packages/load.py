# SPDX-License-Identifier: Apache-2.0
"""A guest that sends requests until SIGTERM, each on a new connection, and then writes how many failed.

Runs with the distribution's Python inside the guest's namespace. Arguments: the expected hostname, the result file.
"""

import http.client
import json
import signal
import sys
import threading
import time

PATH = '/latest/meta-data/hostname'
CLIENTS = 2
TIMEOUT_S = 10
PAUSE_S = 0.05

hostname, result = sys.argv[1:]
running = True
answered = 0
failures = []


def stop(*_):
    global running
    running = False


def send_requests():
    global answered
    while running:
        connection = http.client.HTTPConnection('169.254.169.254', timeout=TIMEOUT_S)
        try:
            connection.request('GET', PATH)
            response = connection.getresponse()
            body = response.read().decode()
            if (response.status, body) == (200, hostname):
                answered += 1
            else:
                failures.append(f'{response.status} {body!r}')
        except (OSError, http.client.HTTPException) as error:
            failures.append(repr(error))
        finally:
            connection.close()
        write()
        time.sleep(PAUSE_S)


def write():
    with open(result, 'w') as file:
        json.dump({'answered': answered, 'failures': failures}, file)


signal.signal(signal.SIGTERM, stop)
threads = [threading.Thread(target=send_requests) for _ in range(CLIENTS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
write()
