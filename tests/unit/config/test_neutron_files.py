# SPDX-License-Identifier: Apache-2.0
"""The defaults of ``neutron-metadata-agent-wsgi``."""

from metadata_wsgi.config import config_files, neutron_files, state_paths
from metadata_wsgi.filters import header_source
from metadata_wsgi.net import options as net_options
from metadata_wsgi.server import options as server_options


def load(paths, opts):
    return config_files.load(neutron_files.configuration(paths), opts)


def test_the_defaults_are_those_of_neutron(tmp_path):
    conf_file = tmp_path / 'neutron.conf'
    conf_file.write_text('[DEFAULT]\ncore_plugin = ml2\n')
    opts = [*state_paths.OPTS, *net_options.OPTS, *header_source.OPTS]
    conf = load([str(conf_file)], opts)
    assert conf.metadata_proxy_socket == '/var/lib/neutron/metadata_proxy'
    assert conf.metadata_header_prefix == 'X-Neutron'
    assert conf.metadata_proxy_socket_mode == 'deduce'


def test_the_files_of_the_operator_have_precedence_over_the_defaults(tmp_path):
    conf_file = tmp_path / 'neutron.conf'
    conf_file.write_text('[DEFAULT]\nstate_path = /var/lib/neutron/kolla\nmetadata_workers = 0\n')
    conf = load([str(conf_file)], [*state_paths.OPTS, *server_options.OPTS])
    assert conf.metadata_proxy_socket == '/var/lib/neutron/kolla/metadata_proxy'
    assert conf.metadata_workers == 0


def test_the_workers_run_as_the_user_neutron_only_where_root_starts_it_and_the_user_exists(monkeypatch):
    for euid, exists, expected in ((0, True, True), (0, False, False), (12345, True, False)):
        monkeypatch.setattr('os.geteuid', lambda euid=euid: euid)
        monkeypatch.setattr(neutron_files, '_user_exists', lambda exists=exists: exists)
        names = [path.rpartition('/')[2] for path in neutron_files.configuration(['/x'])['config_file'].split(',')]
        assert ('neutron_defaults_root.conf' in names) == expected
        assert (names[0], names[-1]) == ('neutron_defaults.conf', 'x')
