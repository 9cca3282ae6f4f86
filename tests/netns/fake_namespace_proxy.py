#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Replaces quantum-ns-metadata-proxy: same options and pid file; each response body names the router or network."""

import argparse
import http.server
import os
import socket
import sys
import threading

parser = argparse.ArgumentParser(allow_abbrev=False)
for name in ('--pid_file', '--router_id', '--network_id', '--state_path', '--metadata_proxy_socket'):
    parser.add_argument(name, default='')
parser.add_argument('--metadata_port', type=int)
parser.add_argument('--metadata_host', action='append', default=[])
parser.add_argument('--mode')
parser.add_argument('--log-file')
parser.add_argument('--log-dir')
args = parser.parse_args()
if args.state_path.endswith('/refuses'):
    sys.exit('standin: cannot work here')


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f'proxy of {args.router_id or args.network_id}'.encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host):
        self.address_family = socket.AF_INET6 if ':' in host else socket.AF_INET
        super().__init__((host, args.metadata_port), Handler)

    def server_bind(self):
        if '%' in self.server_address[0]:
            self.socket.setsockopt(socket.IPPROTO_IPV6, 78, 1)  # IPV6_FREEBIND: the address may come later
            self.server_address = socket.getaddrinfo(*self.server_address)[0][4]
        super().server_bind()


if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
null = os.open(os.devnull, os.O_RDWR)
for stream in (0, 1, 2):
    os.dup2(null, stream)
with open(args.pid_file, 'w') as file:
    file.write(f'{os.getpid()}\n')
servers = [Server(host) for host in args.metadata_host or ['::']]
for server in servers[1:]:
    threading.Thread(target=server.serve_forever, daemon=True).start()
servers[0].serve_forever()
