# SPDX-License-Identifier: Apache-2.0
"""A pipeline that cannot work does not start, and one sentence says why."""

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
def refusal(cloud, tmp_path):
    """Loads the shipped paste file with a change in it; the sentence it is refused with."""

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


AGENT = 'catch_errors peer_credentials deadline header_source instance signature upstream'


def test_signature_before_instance(refusal):
    sentence = refusal(AGENT, 'catch_errors deadline header_source signature instance upstream')
    assert sentence.endswith(
        'api-paste.ini: signature reads metadata_wsgi.instance, which instance establishes only after it: '
        'put instance before signature'
    )


def test_a_filter_that_is_left_out(refusal):
    sentence = refusal(AGENT, 'catch_errors deadline instance signature upstream')
    assert sentence.endswith(
        'instance reads metadata_wsgi.source, which no filter before it establishes: '
        'put one that does (header_source) before it'
    )


def test_the_order_is_checked_without_catch_errors_too(refusal):
    sentence = refusal(AGENT, 'deadline header_source signature instance upstream')
    assert 'put instance before signature' in sentence


def test_a_filter_without_a_section(refusal):
    sentence = refusal(AGENT, AGENT.replace('header_source', 'sauce'))
    assert 'there is no section for sauce' in sentence
    assert 'write [filter:sauce] with a use line, or take it out of the pipeline' in sentence


def test_a_filter_that_does_not_exist(refusal):
    sentence = refusal('egg:metadata_wsgi#signature', 'egg:metadata_wsgi#signatur')
    assert sentence.endswith('there is no filter signatur in metadata_wsgi; did you mean signature?')


def test_a_package_that_does_not_exist(refusal):
    assert 'metadata_wsgy' in refusal('egg:metadata_wsgi#signature', 'egg:metadata_wsgy#signature')


def test_a_module_that_does_not_exist(refusal):
    assert 'no_such_module' in refusal(
        'use = egg:metadata_wsgi#signature', 'paste.filter_factory = no_such_module:factory'
    )


def test_a_misspelt_option_in_the_paste_file(refusal):
    sentence = refusal('egg:metadata_wsgi#deadline', 'egg:metadata_wsgi#deadline\nanswer_withn = 4')
    assert 'answer_withn is no option of this filter in the paste file' in sentence
    assert 'values belong in the configuration files' in sentence


def test_a_missing_secret(refusal):
    sentence = refusal(metadata_proxy_shared_secret=None)
    assert 'metadata_proxy_shared_secret is missing from [DEFAULT] of ' in sentence
    assert 'nova.conf' in sentence


def test_a_value_out_of_bounds(refusal):
    assert 'answer_within in [DEFAULT] of ' in refusal(answer_within=0)


def test_a_directory_that_does_not_exist(refusal):
    assert 'directory = statik: there is none; choose one of neutron, quantum, static' in refusal(directory='statik')


def test_an_opaque_third_partys_filter(refusal):
    sentence = refusal(AGENT, AGENT.replace('header_source', 'header_source opaque'), OPAQUE)
    assert 'ends the pipeline, as far as can be seen' in sentence
    assert 'must keep what it wraps in an attribute named app' in sentence


def test_an_app_that_declares_nothing(refusal):
    sentence = refusal(
        'use = egg:metadata_wsgi#upstream',
        'paste.app_factory = tests.unit.pipeline.test_paste_loader:undeclared_factory',
    )
    assert 'if it is the app, it must have REQUIRES (frozenset() if it reads no fact)' in sentence


def test_two_configuration_files_of_two_minds(refusal, cloud):
    sentence = refusal('# config_file = /etc/metadata_wsgi/metadata_agent.ini', 'config_file = /etc/other.ini')
    assert 'config_file = /etc/other.ini in [DEFAULT]' in sentence
    assert f'{cloud.conf_file} was given on the command line; keep one of them' in sentence


def test_a_pipeline_that_does_not_exist(refusal):
    assert 'agnet' in refusal(name='agnet')


@pytest.mark.parametrize('text', ['no ini file', '[pipeline:agent\npipeline = x', '[a]\nx=1\n[a]\n'])
def test_what_is_no_paste_file(tmp_path, text):
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


def test_every_refusal_is_one_line(refusal):
    for change in ({'answer_within': 'soon'}, {'directory': 'statik'}, {'metadata_proxy_shared_secret': None}):
        assert '\n' not in refusal(**change)


def test_the_shipped_one_is_found():
    assert paste_loader.default_paste_file().endswith('api-paste.ini')
