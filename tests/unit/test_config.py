# SPDX-License-Identifier: Apache-2.0
import pytest
from oslo_config import cfg

from metadata_wsgi import config
from metadata_wsgi.errors import ConfigError

OPTS = [
    cfg.FloatOpt('answer_within', default=9.0, min=0.1),
    cfg.StrOpt('metadata_proxy_shared_secret', required=True, secret=True, help='Secret shared with Nova.'),
    cfg.StrOpt('nova_metadata_host', default='127.0.0.1', deprecated_name='nova_metadata_ip'),
]


@pytest.fixture
def conf_file(tmp_path):
    def write(text, name='agent.ini'):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


def test_values_are_read(conf_file):
    path = conf_file('[DEFAULT]\nanswer_within = 4\nmetadata_proxy_shared_secret = s\n')
    conf = config.load({'config_file': path}, OPTS)
    assert (conf.answer_within, conf.metadata_proxy_shared_secret) == (4.0, 's')


def test_the_last_of_several_files_wins(conf_file):
    first = conf_file('[DEFAULT]\nanswer_within = 4\nmetadata_proxy_shared_secret = s\n', 'a.ini')
    second = conf_file('[DEFAULT]\nanswer_within = 5\n', 'b.ini')
    conf = config.load({'config_file': f'{first}, {second}'}, OPTS)
    assert (conf.answer_within, conf.metadata_proxy_shared_secret) == (5.0, 's')


def test_a_group_has_its_own_values(conf_file):
    path = conf_file('[DEFAULT]\nanswer_within = 4\n[static]\nanswer_within = 6\n')
    assert config.load({'config_file': path}, OPTS[:1], 'static').static.answer_within == 6.0


def test_grizzlys_name_is_taken(conf_file, caplog):
    path = conf_file('[DEFAULT]\nnova_metadata_ip = 10.0.0.9\n')
    assert config.load({'config_file': path}, OPTS[2:]).nova_metadata_host == '10.0.0.9'


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('[DEFAULT]\nanswer_within = 0\n', ['answer_within in [DEFAULT] of ', 'agent.ini', '0.1']),
        ('[DEFAULT]\nanswer_within = soon\n', ['answer_within in [DEFAULT] of ', 'soon']),
        ('[DEFAULT]\n', ['metadata_proxy_shared_secret is missing from [DEFAULT] of ', 'Secret shared with Nova.']),
        (
            '[DEFAULT]\nmetadata_proxy_shared_secret =\n',
            ['metadata_proxy_shared_secret is missing from [DEFAULT] of '],
        ),
        ('answer_within\n=\n[[', ['not a configuration file']),
    ],
)
def test_what_cannot_work_is_named(conf_file, text, words):
    with pytest.raises(ConfigError) as raised:
        config.load({'config_file': conf_file(text)}, OPTS)
    assert [word for word in words if word not in str(raised.value)] == []


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r'^config_file: /nonexistent/agent\.ini is no file; name one that exists$'):
        config.load({'config_file': '/nonexistent/agent.ini'}, OPTS)


def test_a_file_that_is_not_text_is_a_config_error(tmp_path):
    path = tmp_path / 'agent.ini'
    path.write_bytes(b'[DEFAULT]\nx = \xff\xfe\n')
    with pytest.raises(ConfigError, match=r'agent\.ini'):
        config.load({'config_file': str(path)}, OPTS)


def test_a_secret_value_is_never_in_the_sentence(conf_file):
    opts = [cfg.IntOpt('admin_password', secret=True)]
    with pytest.raises(ConfigError) as raised:
        config.load({'config_file': conf_file('[DEFAULT]\nadmin_password = hunter2\n')}, opts)
    assert 'hunter2' not in str(raised.value)
    assert 'admin_password' in str(raised.value)


def test_a_misspelt_name_is_found_and_the_right_one_said(conf_file):
    path = conf_file('[DEFAULT]\nanswer_withn = 4\n')
    assert config.misspelt([path], [('DEFAULT', OPTS)]) == [
        f'answer_withn in [DEFAULT] of {path} is no option; did you mean answer_within?'
    ]


@pytest.mark.parametrize(
    'text',
    [
        '[DEFAULT]\nanswer_within = 4\n',
        '[DEFAULT]\nnova_metadata_ip = 10.0.0.9\n',
        '[DEFAULT]\nnova_metadata_url = http://nova\n',
        '[DEFAULT]\nauth_strategy = keystone\ninterface_driver = x\n',
        '[AGENT]\nanswer_withn = 4\n',
    ],
    ids=['ours', 'deprecated', 'foreign and close', 'foreign', "another program's group"],
)
def test_what_is_no_mistake_is_let_pass(conf_file, text):
    assert config.misspelt([conf_file(text)], [('DEFAULT', OPTS)]) == []


def test_files_are_those_that_are_named():
    assert config.files({'config_file': ' /a.ini, /b.ini ,'}) == ['/a.ini', '/b.ini']
