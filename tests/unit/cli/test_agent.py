# SPDX-License-Identifier: Apache-2.0
"""Which paste file the agent loads, and who may connect to its socket."""

import pytest

from metadata_wsgi.cli import agent
from metadata_wsgi.pipeline import paste_loader

NEUTRON_PASTE = """[composite:neutron]
use = egg:Paste#urlmap
[pipeline:neutronapi_v2_0]
pipeline = cors
"""


@pytest.fixture
def paste_file(tmp_path):
    """A function: options, and text of a paste file -> what the agent loads, and its note."""

    def choose(text, **options):
        path = tmp_path / 'api-paste.ini'
        if text is not None:
            path.write_text(text)
        conf = tmp_path / 'agent.ini'
        lines = [f'{name} = {value}' for name, value in options.items()]
        conf.write_text('\n'.join(['[DEFAULT]', *lines, '']).replace('PATH', str(path)))
        chosen, note = agent.paste_file({'config_file': str(conf)})
        return chosen.replace(str(path), 'PATH'), note

    return choose


@pytest.mark.parametrize('text', [NEUTRON_PASTE, None], ids=['of Neutron', 'missing'])
def test_api_paste_config_of_neutron_is_not_used(paste_file, text):
    """neutron.conf, the first --config-file of every agent, has this option."""
    chosen, note = paste_file(text, api_paste_config='PATH')
    assert chosen == paste_loader.default_paste_file()
    assert "metadata_paste_config names the agent's" in note


def test_api_paste_config_is_used_for_a_file_with_the_agents_pipeline(paste_file):
    assert paste_file('[pipeline:agent]\n', api_paste_config='PATH') == ('PATH', '')


def test_metadata_paste_config_is_used_whatever_the_file_is(paste_file):
    assert paste_file(None, metadata_paste_config='PATH', api_paste_config='/x') == ('PATH', '')


def test_without_an_option_it_is_the_paste_file_of_the_package(paste_file):
    assert paste_file(None) == (paste_loader.default_paste_file(), '')


@pytest.mark.parametrize(
    ('euid', 'options', 'access'),
    [
        (0, ('deduce', 'nobody', ''), ('deduce', 'nobody', '')),
        (12345, ('deduce', '', ''), ('deduce', '', '')),
        (12345, ('deduce', '12345', ''), ('deduce', '12345', '')),
        (12345, ('deduce', 'nobody', ''), ('group', '', '')),
        (12345, ('deduce', 'nobody', '12346'), ('group', '', '12346')),
        (12345, ('deduce', 'nobody', 'nogroup'), ('all', '', '')),
        (12345, ('user', 'nobody', ''), ('user', 'nobody', '')),
    ],
    ids=['root', 'no option', 'own user', 'own group', 'group of the process', 'another group', 'explicit'],
)
def test_without_root_the_socket_is_opened_to_the_user_of_the_proxies_as_neutron_does(
    monkeypatch, euid, options, access
):
    monkeypatch.setattr('os.geteuid', lambda: euid)
    monkeypatch.setattr('os.getegid', lambda: 12345)
    monkeypatch.setattr('os.getgroups', lambda: [12346])
    assert agent.socket_access(*options) == access
