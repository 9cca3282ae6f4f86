# SPDX-License-Identifier: Apache-2.0
from metadata_wsgi.config import config_files, state_paths


def test_the_pid_file_is_that_of_grizzly():
    assert state_paths.pid_file('/var/lib/quantum', 'r1') == '/var/lib/quantum/external/pids/r1.pid'


def test_the_socket_is_in_the_state_directory(tmp_path):
    conf_file = tmp_path / 'agent.ini'
    conf_file.write_text('[DEFAULT]\nstate_path = /var/lib/neutron\n')
    assert config_files.load({'config_file': str(conf_file)}, state_paths.OPTS).metadata_proxy_socket == (
        '/var/lib/neutron/metadata_proxy'
    )
