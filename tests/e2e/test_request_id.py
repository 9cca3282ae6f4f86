# SPDX-License-Identifier: Apache-2.0
"""One request id from the client over namespace proxy and agent to Nova and back, and in the logs of both."""

import http.client
import json
import re
import socket

ID = 'req-1b4e28ba-2fa1-11d2-883f-0016d3cca427'


def test_one_request_id_in_every_log_line_of_both_programs(agent, proxy, guest, cloud):
    cloud.configure(use_json=True, debug=True, use_stderr=True, request_timeout=5)
    running = agent()
    namespace_proxy, port = proxy(None, '--use-json', '--debug')
    given = guest(port, headers={'X-Openstack-Request-Id': ID})
    forged = guest(port, headers={'X-Openstack-Request-Id': 'ERROR everything fails'})
    assert (given[0], given[1]['x-openstack-request-id']) == (200, ID)
    made = forged[1]['x-openstack-request-id']
    assert re.fullmatch(r'req-[0-9a-f-]{36}', made)
    assert [seen['HTTP_X_OPENSTACK_REQUEST_ID'] for seen in cloud.nova.seen] == [ID, made]

    # Each program logs a fault of a request with its id.
    cloud.server.server_close()
    failed = guest(port, headers={'X-Openstack-Request-Id': ID})
    assert (failed[0], failed[1]['x-openstack-request-id']) == (503, ID)
    running.end()
    assert guest(port, headers={'X-Openstack-Request-Id': ID})[0] == 503
    assert ids_of(running, 'no response from Nova') == {ID}
    assert ids_of(namespace_proxy, 'no response from the metadata agent') == {ID}
    assert 'everything fails' not in running.text() + namespace_proxy.text()


def test_a_malformed_request_has_a_request_id_in_its_response_and_in_the_log(agent, proxy, cloud):
    cloud.configure(use_json=True, use_stderr=True)
    running = agent()
    namespace_proxy, port = proxy(None, '--use-json')
    for address, program in ((('127.0.0.1', port), namespace_proxy), (str(cloud.socket), running)):
        with socket.socket(socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX) as client:
            client.settimeout(15)
            client.connect(address)
            client.sendall(f'GET / HTTP/1.1\r\nX-Openstack-Request-Id: {ID}\r\nHost: x\n\n'.encode())
            client.shutdown(socket.SHUT_WR)
            with client.makefile('rb') as response:
                assert response.readline() == b'HTTP/1.1 400 Bad Request\r\n'
                made = http.client.parse_headers(response)['X-Openstack-Request-Id']
        assert re.fullmatch(r'req-[0-9a-f-]{36}', made)
        assert made != ID
        assert ids_of(program, 'Refused a malformed request') == {made}


def ids_of(program, text):
    """The request ids of the JSON log lines with ``text``."""
    lines = [json.loads(line) for line in program.text().splitlines() if line.startswith('{')]
    return {line['context'].get('request_id') for line in lines if text in line['message']}
