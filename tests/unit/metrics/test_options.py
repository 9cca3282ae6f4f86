# SPDX-License-Identifier: Apache-2.0
import os

import pytest

from metadata_wsgi.errors import ConfigError
from metadata_wsgi.metrics import options


def listen_address(tmp_path, text):
    path = tmp_path / 'agent.ini'
    path.write_text(f'[metrics]\n{text}\n')
    return options.load_listen_address({'config_file': str(path)})


@pytest.mark.parametrize(
    ('text', 'address'),
    [
        ('', None),
        ('listen = 127.0.0.1:9698', ('127.0.0.1', 9698)),
        ('listen = 127.8.8.8:1', ('127.8.8.8', 1)),
        ('listen = [::1]:9698', ('::1', 9698)),
        ('listen = 192.0.2.10:9698\nallow_remote = true', ('192.0.2.10', 9698)),
    ],
)
def test_listen(tmp_path, text, address):
    assert listen_address(tmp_path, text) == address


@pytest.mark.parametrize('address', ['0.0.0.0:9698', '192.0.2.10:9698', '[::]:9698', '169.254.169.254:80'])
def test_an_address_that_is_not_loopback_is_refused_unless_allowed(tmp_path, address):
    with pytest.raises(ConfigError, match=r'other machines, and perhaps instances, can reach this address; write a l'):
        listen_address(tmp_path, f'listen = {address}')


@pytest.mark.parametrize(
    'text', ['9698', '127.0.0.1', '127.0.0.1:', 'localhost:9698', '127.0.0.1:0', '127.0.0.1:65536']
)
def test_a_malformed_listen_address_stops_the_start(tmp_path, text):
    with pytest.raises(ConfigError, match=r'in \[metrics\]: not an address and a port; write 127.0.0.1:9698'):
        listen_address(tmp_path, f'listen = {text}')


def test_the_directory_is_made(tmp_path):
    options.make_directory(str(tmp_path / 'a' / 'metrics'), None)
    assert (tmp_path / 'a' / 'metrics').is_dir()


def test_a_directory_that_cannot_be_made_stops_the_start(tmp_path):
    (tmp_path / 'file').write_text('')
    for function in (options.make_directory, options.check_directory):
        with pytest.raises(ConfigError, match=r'in \[metrics\] cannot be made: Not a directory'):
            function(str(tmp_path / 'file' / 'metrics'), None)


def test_a_check_does_not_make_the_directory(tmp_path):
    options.check_directory(str(tmp_path / 'a' / 'metrics'), None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason='only root can give a directory away')
def test_root_gives_the_directory_to_the_workers_and_refuses_another_users(tmp_path):
    path = tmp_path / 'metrics'
    for _ in range(2):
        options.check_directory(str(path), (4711, 4712))
        options.make_directory(str(path), (4711, 4712))
        assert (path.stat().st_uid, path.stat().st_gid) == (4711, 4712)
    with pytest.raises(ConfigError, match='belongs to uid 4711, and the workers, uid 4713, cannot write there'):
        options.make_directory(str(path), (4713, 4713))
    with pytest.raises(ConfigError, match='belongs to uid 4711, and the workers, uid 4713, cannot write there'):
        options.check_directory(str(path), (4713, 4713))
