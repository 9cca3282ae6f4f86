# SPDX-License-Identifier: Apache-2.0
from metadata_wsgi.netns.proxy_command import ProxyCommand
from metadata_wsgi.netns.target import AttachTarget

HOSTS = ['169.254.169.254', 'fe80::a9fe:a9fe%tap0']
UUID = '6f1b4e0a-8f5e-4a57-9d0e-1f0c5a3f0d11'


def test_router_proxy_command_line_is_that_of_an_l3_agent():
    proxy = ProxyCommand(state_path='/s', socket='/s/sock', log_dir='/l')
    assert proxy.argv(AttachTarget.of('router', UUID), 9697) == [
        'quantum-ns-metadata-proxy',
        f'--pid_file=/s/external/pids/{UUID}.pid',
        f'--router_id={UUID}',
        '--state_path=/s',
        '--metadata_port=9697',
        '--mode=process',
        '--metadata_proxy_socket=/s/sock',
        f'--log-file=quantum-ns-metadata-proxy-{UUID}.log',
        '--log-dir=/l',
    ]


def test_network_proxy_is_bound_to_the_metadata_address():
    """On all addresses it would serve every host that reaches the DHCP port (LP#1745618)."""
    assert ProxyCommand(state_path='/s').argv(AttachTarget.of('network', UUID), 80, ['169.254.169.254']) == [
        'quantum-ns-metadata-proxy',
        f'--pid_file=/s/external/pids/{UUID}.pid',
        f'--network_id={UUID}',
        '--state_path=/s',
        '--metadata_port=80',
        '--mode=process',
        '--metadata_host=169.254.169.254',
    ]


def test_network_proxy_gets_the_ipv6_address_with_zone_as_second_host():
    """The first address must be there; the second may be missing."""
    assert ProxyCommand(state_path='/s').argv(AttachTarget.of('network', UUID), 80, HOSTS)[-2:] == [
        '--metadata_host=169.254.169.254',
        '--metadata_host=fe80::a9fe:a9fe%tap0',
    ]


def test_router_proxy_listens_on_all_addresses_of_both_families():
    assert not [word for word in ProxyCommand().argv(AttachTarget.of('router', UUID), 9697, ['']) if 'host' in word]
