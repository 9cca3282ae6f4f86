# SPDX-License-Identifier: Apache-2.0
"""The example filter can be added to the shipped paste file as its text says, and works."""

from pathlib import Path

import pytest
import webtest

from metadata_wsgi.errors import ConfigError
from metadata_wsgi.pipeline import paste_loader
from tests.cloud import SHIPPED, Cloud

EXAMPLES = SHIPPED.parent.parent / 'examples'
A = {'X-Forwarded-For': '10.1.1.2', 'X-Quantum-Router-ID': 'router-a'}
B = {'X-Forwarded-For': '10.1.1.2', 'X-Quantum-Router-ID': 'router-b'}


@pytest.fixture
def load(tmp_path: Path, monkeypatch):
    """Loads the shipped pipeline with ``hide_user_data`` after the named filter."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    with Cloud(tmp_path) as cloud:

        def with_it_after(name):
            text = SHIPPED.read_text().replace(f'{name} ', f'{name} hide_user_data ', 1)
            path = tmp_path / 'api-paste.ini'
            path.write_text(text + (EXAMPLES / 'hide_user_data.ini').read_text())
            return webtest.TestApp(paste_loader.load(str(path), 'agent', {'config_file': str(cloud.conf_file)}))

        yield with_it_after


@pytest.mark.parametrize('path', ['/openstack/latest/user_data', '/latest/user-data', '/latest/user-data/'])
def test_user_data_is_hidden_from_the_listed_project_only(load, path):
    app = load('header_source instance')
    app.get(path, headers=A, status=404)
    assert app.get(path, headers=B).json['uuid'] == 'instance-b'


def test_everything_else_passes(load):
    assert (
        load('header_source instance').get('/openstack/latest/meta_data.json', headers=A).json['uuid'] == 'instance-a'
    )


def test_in_a_place_where_it_cannot_work_it_is_refused(load):
    with pytest.raises(ConfigError) as raised:
        load('deadline header_source')
    assert str(raised.value).endswith(
        'hide_user_data.HideUserDataFilter reads metadata_wsgi.instance, which instance writes only after it: '
        'put instance before hide_user_data.HideUserDataFilter'
    )
