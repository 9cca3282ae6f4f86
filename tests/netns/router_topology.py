# SPDX-License-Identifier: Apache-2.0
"""A router with a guest and an outside network, each in a namespace; made for each test and removed after it.

::

    guest 10.1.1.2 --- qr-in 10.1.1.1 [router] qg-out 198.51.100.1 --- 198.51.100.2 [outside]

The outside namespace has the address 169.254.169.254 too, so a test notices a packet that leaks out of the router.
"""

import contextlib
import http.client
import http.server
import socket
import subprocess
import threading
import uuid

from metadata_wsgi.netns import namespaces

METADATA = '169.254.169.254'


def ip(*words):
    subprocess.run(['ip', *words], check=True, capture_output=True)


def saved_rules(namespace, program):
    """The rules and chains that ``PROGRAM-save`` prints, without comments, counters and empty built-in chains."""
    text = subprocess.run(['ip', 'netns', 'exec', namespace, f'{program}-save'], check=True, capture_output=True).stdout
    table, rules = '', []
    for line in text.decode().splitlines():
        if line.startswith('*'):
            table = line
        elif line.startswith('-A') or (line.startswith(':') and ' - ' in line):
            rules.append(f'{table} {line.partition(" [")[0]}')
    return sorted(rules, key=lambda line: line.split()[:3])


def get(namespace, host, port=80, timeout_s=30.0, source=''):
    """The body of the response to ``GET /`` from inside the namespace; '' without a response."""

    def send():
        connection = http.client.HTTPConnection(
            host, port, timeout=timeout_s, source_address=(source, 0) if source else None
        )
        try:
            connection.request('GET', '/')
            return connection.getresponse().read().decode()
        except OSError:
            return ''
        finally:
            connection.close()

    return namespaces.run_in(namespace, send)


@contextlib.contextmanager
def http_server(namespace, text, port=80, family=socket.AF_INET):
    """Run an HTTP server in the namespace whose response body is ``text``."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header('Content-Length', str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *args):
            pass

    class Server(http.server.ThreadingHTTPServer):
        address_family = family
        daemon_threads = True

    server = namespaces.run_in(namespace, lambda: Server(('', port), Handler))
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.05})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class RouterTopology:
    """The three namespaces; ``make`` builds them as drawn above. ``uuid`` is the id of the router."""

    def __init__(self):
        self.uuid = str(uuid.uuid4())
        self.router = f'qrouter-{self.uuid}'
        self.guest = f'guest-{self.uuid}'
        self.outside = f'outside-{self.uuid}'

    def make(self):
        for name in (self.router, self.guest, self.outside):
            ip('netns', 'add', name)
            ip('-n', name, 'link', 'set', 'lo', 'up')
        self._connect_by_veth(self.router, 'qr-in', '10.1.1.1/24', self.guest, 'eth0', '10.1.1.2/24')
        self._connect_by_veth(self.router, 'qg-out', '198.51.100.1/24', self.outside, 'eth0', '198.51.100.2/24')
        ip('-n', self.guest, 'route', 'add', 'default', 'via', '10.1.1.1')
        ip('-n', self.router, 'route', 'add', 'default', 'via', '198.51.100.2')
        ip('-n', self.outside, 'route', 'add', '10.1.1.0/24', 'via', '198.51.100.1')
        ip('-n', self.outside, 'address', 'add', f'{METADATA}/32', 'dev', 'lo')
        ip('netns', 'exec', self.router, 'sysctl', '-qw', 'net.ipv4.ip_forward=1')

    def _connect_by_veth(self, one, name, address, other, other_name, other_address):
        ip('-n', one, 'link', 'add', name, 'type', 'veth', 'peer', 'name', other_name, 'netns', other)
        for namespace, link, cidr in ((one, name, address), (other, other_name, other_address)):
            ip('-n', namespace, 'address', 'add', cidr, 'dev', link)
            ip('-n', namespace, 'link', 'set', link, 'up')

    def remove(self):
        for name in (self.router, self.guest, self.outside):
            if namespaces.exists(name):
                ip('netns', 'delete', name)
