# SPDX-License-Identifier: Apache-2.0
"""A pipeline that cannot work stops the start with one message."""

import pytest

from metadata_wsgi.errors import ConfigError
from metadata_wsgi.pipeline import paste_loader
from tests.cloud import SHIPPED, Cloud

OPAQUE = """
[filter:opaque]
paste.filter_factory = tests.unit.pipeline.test_paste_loader:opaque_factory
"""


def opaque_factory(global_conf):
    def wrap(app):
        return lambda environ, start_response: app(environ, start_response)

    return wrap


def undeclared_factory(global_conf):
    return lambda environ, start_response: []


@pytest.fixture
def cloud(tmp_path):
    with Cloud(tmp_path) as made:
        yield made


@pytest.fixture
def error_of(cloud, tmp_path):
    """A function that loads the shipped paste file with one change and returns the error message."""

    def load(old='', new='', more='', name='agent', **options):
        text = SHIPPED.read_text()
        assert old in text
        path = tmp_path / 'api-paste.ini'
        path.write_text(text.replace(old, new, 1) + more if old else text + more)
        cloud.configure(**options)
        with pytest.raises(ConfigError) as raised:
            paste_loader.load(str(path), name, {'config_file': str(cloud.conf_file)})
        return str(raised.value)

    return load


AGENT = 'catch_errors request_id peer_credentials deadline header_source instance signature upstream'


def test_signature_before_instance(error_of):
    message = error_of(AGENT, 'catch_errors deadline header_source signature instance upstream')
    assert message.endswith(
        'api-paste.ini: signature reads metadata_wsgi.instance, which instance writes only after it: '
        'put instance before signature'
    )


def test_a_missing_filter(error_of):
    message = error_of(AGENT, 'catch_errors deadline instance signature upstream')
    assert message.endswith(
        'instance reads metadata_wsgi.source, which no filter before it writes: put the filter header_source before it'
    )


def test_the_order_is_checked_without_catch_errors_too(error_of):
    message = error_of(AGENT, 'deadline header_source signature instance upstream')
    assert 'put instance before signature' in message


def test_a_filter_without_a_section(error_of):
    message = error_of(AGENT, AGENT.replace('header_source', 'sauce'))
    assert 'there is no section for sauce' in message
    assert 'write [filter:sauce] with a use line, or remove it from the pipeline' in message


def test_a_filter_that_does_not_exist(error_of):
    message = error_of('egg:metadata_wsgi#signature', 'egg:metadata_wsgi#signatur')
    assert message.endswith('there is no filter signatur in metadata_wsgi; did you mean signature?')


def test_a_package_that_does_not_exist(error_of):
    assert 'metadata_wsgy' in error_of('egg:metadata_wsgi#signature', 'egg:metadata_wsgy#signature')


def test_a_module_that_does_not_exist(error_of):
    assert 'no_such_module' in error_of(
        'use = egg:metadata_wsgi#signature', 'paste.filter_factory = no_such_module:factory'
    )


def test_a_misspelt_option_in_the_paste_file(error_of):
    message = error_of('egg:metadata_wsgi#deadline', 'egg:metadata_wsgi#deadline\nanswer_withn = 4')
    assert 'answer_withn is not an option of this filter in the paste file' in message
    assert 'write it to the configuration file' in message


def test_a_missing_secret(error_of):
    message = error_of(metadata_proxy_shared_secret=None)
    assert 'metadata_proxy_shared_secret is missing from [DEFAULT] of ' in message
    assert 'nova.conf' in message


def test_a_value_out_of_bounds(error_of):
    assert 'request_timeout in [DEFAULT] of ' in error_of(request_timeout=0)


def test_a_directory_that_does_not_exist(error_of):
    assert 'directory = statik: there is no such lookup; choose one of neutron, quantum, static' in error_of(
        directory='statik'
    )


def test_a_third_party_filter_that_hides_its_inner_app(error_of):
    message = error_of(AGENT, AGENT.replace('header_source', 'header_source opaque'), OPAQUE)
    assert 'seems to be the end of the pipeline' in message
    assert 'its inner app must be an attribute named app' in message


def test_an_app_without_requires(error_of):
    message = error_of(
        'use = egg:metadata_wsgi#upstream',
        'paste.app_factory = tests.unit.pipeline.test_paste_loader:undeclared_factory',
    )
    assert 'if it is the app, it must have REQUIRES (frozenset() if it reads no key)' in message


def test_conflicting_values_of_a_key_in_file_and_command_line(error_of, cloud):
    message = error_of('# config_file = /etc/metadata_wsgi/metadata_agent.ini', 'config_file = /etc/other.ini')
    assert 'config_file = /etc/other.ini in [DEFAULT]' in message
    assert f'{cloud.conf_file} was given on the command line; keep one of them' in message


def test_a_pipeline_that_does_not_exist(error_of):
    assert 'agnet' in error_of(name='agnet')


@pytest.mark.parametrize('text', ['no ini file', '[pipeline:agent\npipeline = x', '[a]\nx=1\n[a]\n'])
def test_a_file_that_is_no_paste_file(tmp_path, text):
    path = tmp_path / 'api-paste.ini'
    path.write_text(text)
    with pytest.raises(ConfigError, match=r'api-paste\.ini: '):
        paste_loader.load(str(path))


def test_a_paste_file_that_is_not_there():
    with pytest.raises(ConfigError) as raised:
        paste_loader.load('/nonexistent/api-paste.ini')
    assert (
        str(raised.value)
        == 'metadata_paste_config = /nonexistent/api-paste.ini: there is no such file; name the paste file'
    )


def test_every_error_message_is_one_line(error_of):
    for change in ({'answer_within': 'soon'}, {'directory': 'statik'}, {'metadata_proxy_shared_secret': None}):
        assert '\n' not in error_of(**change)


def test_the_shipped_paste_file_is_found():
    assert paste_loader.default_paste_file().endswith('api-paste.ini')
