# SPDX-License-Identifier: Apache-2.0
"""The shipped paste file with the caches named in its pipelines, as in doc/caches.md."""

import pytest
import webtest

from metadata_wsgi.errors import ConfigError
from metadata_wsgi.pipeline import order, paste_loader
from tests.cloud import SHIPPED, Cloud

A = {'X-Forwarded-For': '10.1.1.2', 'X-Quantum-Router-ID': 'router-a'}
B = {'X-Forwarded-For': '10.1.1.2', 'X-Quantum-Router-ID': 'router-b'}


@pytest.fixture
def cloud(tmp_path):
    with Cloud(tmp_path) as made:
        yield made


def with_filters(directory, before_instance='', after_instance=''):
    """The shipped paste file with these filters named around ``instance``, in every pipeline."""
    named = f' {before_instance} instance {after_instance} '.replace('  ', ' ')
    path = directory / 'api-paste.ini'
    path.write_text(
        '\n'.join(
            line.replace(' instance ', named) if line.startswith('pipeline =') else line
            for line in SHIPPED.read_text().splitlines()
        )
    )
    return path


@pytest.fixture
def load(cloud, tmp_path):
    """Loads a pipeline with filters around ``instance`` and options of its own."""

    def make(before_instance='lookup_cache', after_instance='response_cache', name='agent', **options):
        cloud.configure(**options)
        # For the pipeline standalone, which otherwise makes its directory in /var/lib.
        with cloud.conf_file.open('a') as file:
            file.write(f'[metadata_app]\npassword_dir = {tmp_path}/passwords\n')
        path = with_filters(tmp_path, before_instance, after_instance)
        return paste_loader.load(str(path), name, {'config_file': str(cloud.conf_file)})

    return make


@pytest.mark.parametrize('name', ['agent', 'one_hop', 'standalone'])
def test_the_order_is_accepted_in_every_pipeline(load, name):
    names = [order.name(link) for link in order.chain(load(name=name))]
    assert names[names.index('lookup_cache') :][:3] == ['lookup_cache', 'instance', 'response_cache']


def test_lookup_cache_behind_instance_is_refused(load):
    with pytest.raises(ConfigError, match='put lookup_cache before instance'):
        load(before_instance='', after_instance='lookup_cache')


def test_response_cache_before_instance_is_refused(load):
    with pytest.raises(ConfigError, match='put instance before response_cache'):
        load(before_instance='response_cache', after_instance='')


def test_cached_instances_with_one_address_stay_apart(load, cloud):
    app = webtest.TestApp(load())
    for _ in range(3):
        for headers, instance in ((A, 'instance-a'), (B, 'instance-b')):
            assert app.get('/openstack/latest/meta_data.json', headers=headers).json['uuid'] == instance
    assert len(cloud.nova.seen) == 2


def test_without_response_cache_every_request_reaches_nova(load, cloud):
    app = webtest.TestApp(load(after_instance=''))
    for _ in range(3):
        app.get('/x', headers=A)
    assert len(cloud.nova.seen) == 3


def test_a_password_is_not_cached(load, cloud):
    app = webtest.TestApp(load())
    for _ in range(2):
        app.get('/openstack/latest/password', headers=A)
    assert len(cloud.nova.seen) == 2


def test_an_unknown_address_is_a_404_each_time(load, cloud):
    app = webtest.TestApp(load())
    for _ in range(2):
        app.get('/', headers={**A, 'X-Forwarded-For': '10.1.1.77'}, status=404)
    assert cloud.nova.seen == []


def test_an_error_of_nova_is_not_cached(load, cloud):
    app = webtest.TestApp(load(answer_within=5))
    cloud.nova.statuses = [404]
    app.get('/x', headers=A, status=404)
    assert app.get('/x', headers=A).json['uuid'] == 'instance-a'


def test_an_invalid_cache_url_stops_the_start(load):
    with pytest.raises(ConfigError, match='cache_url has the scheme nowhere'):
        load(cache_url='nowhere://host')


def test_the_cache_url_of_older_agents_is_accepted(load):
    load(cache_url='memory://?default_ttl=5')


def test_a_cached_response_has_the_request_id_of_its_own_request(load, cloud):
    """Not that of Nova, which names the request that was cached."""
    cloud.nova.headers = [('X-Openstack-Request-Id', 'req-of-nova')]
    app = webtest.TestApp(load())
    ids = [app.get('/x', headers=A).headers['X-Openstack-Request-Id'] for _ in range(3)]
    assert ids[0] == 'req-of-nova'
    assert len({*ids}) == 3
    assert len(cloud.nova.seen) == 1
