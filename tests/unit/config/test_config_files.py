# SPDX-License-Identifier: Apache-2.0
import grp
import os
import traceback
from contextlib import contextmanager

import pytest
from oslo_config import cfg

from metadata_wsgi.config import config_files
from metadata_wsgi.errors import ConfigError

OPTS = [
    cfg.FloatOpt('answer_within', default=9.0, min=0.1),
    cfg.StrOpt('metadata_proxy_shared_secret', required=True, secret=True, help='Secret shared with Nova.'),
    cfg.StrOpt('nova_metadata_host', default='127.0.0.1', deprecated_name='nova_metadata_ip'),
]


def test_values_are_read(conf_file):
    path = conf_file('[DEFAULT]\nanswer_within = 4\nmetadata_proxy_shared_secret = s\n')
    conf = config_files.load({'config_file': path}, OPTS)
    assert (conf.answer_within, conf.metadata_proxy_shared_secret) == (4.0, 's')


def test_the_last_of_several_files_wins(conf_file):
    first = conf_file('[DEFAULT]\nanswer_within = 4\nmetadata_proxy_shared_secret = s\n', 'a.ini')
    second = conf_file('[DEFAULT]\nanswer_within = 5\n', 'b.ini')
    conf = config_files.load({'config_file': f'{first}, {second}'}, OPTS)
    assert (conf.answer_within, conf.metadata_proxy_shared_secret) == (5.0, 's')


def test_a_group_has_its_own_values(conf_file):
    path = conf_file('[DEFAULT]\nanswer_within = 4\n[static]\nanswer_within = 6\n')
    assert config_files.load({'config_file': path}, OPTS[:1], 'static').static.answer_within == 6.0


def test_a_deprecated_name_is_read(conf_file, caplog):
    path = conf_file('[DEFAULT]\nnova_metadata_ip = 10.0.0.9\n')
    assert config_files.load({'config_file': path}, OPTS[2:]).nova_metadata_host == '10.0.0.9'


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
def test_an_invalid_configuration_is_named(conf_file, text, words):
    with pytest.raises(ConfigError) as raised:
        config_files.load({'config_file': conf_file(text)}, OPTS)
    assert [word for word in words if word not in str(raised.value)] == []


def test_a_missing_file_is_named():
    with pytest.raises(
        ConfigError, match=r'^config_file: /nonexistent/agent\.ini is no file or directory; name one that exists$'
    ):
        config_files.load({'config_file': '/nonexistent/agent.ini'}, OPTS)


def test_a_file_that_is_not_text_is_a_config_error(tmp_path):
    path = tmp_path / 'agent.ini'
    path.write_bytes(b'[DEFAULT]\nx = \xff\xfe\n')
    with pytest.raises(ConfigError, match=r'agent\.ini'):
        config_files.load({'config_file': str(path)}, OPTS)


# nogroup and daemon on Debian, nobody and bin on RHEL.
NOBODYS_GROUP, GROUP_1 = grp.getgrgid(65534).gr_name, grp.getgrgid(1).gr_name


@contextmanager
def unprivileged():
    """Inside the block this process is nobody, in the group 65534 only."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@pytest.mark.skipif(os.geteuid() != 0, reason='needs root')
@pytest.mark.parametrize(
    ('group', 'mode', 'advice'),
    [
        (0, 0o640, rf'chgrp {NOBODYS_GROUP} {{path}}; chmod 640 {{path}}$'),
        (65534, 0o600, rf'chgrp {NOBODYS_GROUP} {{path}}; chmod 640 {{path}}$'),
        # The file of another service, for example 0640 root:neutron: with another group that service could not read it.
        (1, 0o640, rf'usermod --append --groups {GROUP_1} nobody, and restart the service$'),
    ],
)
def test_a_file_without_read_permission_is_named_with_the_user_and_the_remedy(conf_file, group, mode, advice):
    path = conf_file('[DEFAULT]\nmetadata_proxy_shared_secret = s\n')
    os.chown(path, 0, group)
    os.chmod(path, mode)
    words = f'^config_file: {path}: the user nobody of this process cannot read it; ' + advice.format(path=path)
    with unprivileged(), pytest.raises(ConfigError, match=words):
        config_files.load({'config_file': path}, OPTS)


@pytest.mark.skipif(os.geteuid() != 0, reason='needs root')
@pytest.mark.parametrize('mode', [0o700, 0o711], ids=['cannot enter', 'cannot list'])
def test_a_directory_without_permission_is_named_with_the_user_and_the_remedy(tmp_path, mode):
    directory = tmp_path / 'conf.d'
    directory.mkdir(mode=0o755)
    (directory / 'a.conf').write_text('[DEFAULT]\n')
    directory.chmod(mode)
    words = (
        f'^config_file: {directory}: the user nobody .* cannot read it; chgrp {NOBODYS_GROUP} {directory}; chmod 750 '
    )
    with unprivileged(), pytest.raises(ConfigError, match=words):
        config_files.load({'config_file': str(directory)}, OPTS)
    if mode == 0o700:
        with unprivileged(), pytest.raises(ConfigError, match=words):
            config_files.load({'config_file': str(directory / 'a.conf')}, OPTS)


@pytest.mark.skipif(os.geteuid() != 0, reason='needs root')
def test_a_secret_file_without_read_permission_is_named_with_the_user_and_the_remedy(conf_file, tmp_path):
    secret = tmp_path / 'secret'
    secret.write_text('s')
    secret.chmod(0o600)
    path = conf_file(f'[DEFAULT]\nmetadata_proxy_shared_secret_file = {secret}\n')
    words = (
        f'^metadata_proxy_shared_secret_file: {secret}: the user nobody .*; chgrp {NOBODYS_GROUP} {secret}; chmod 640 '
    )
    with unprivileged(), pytest.raises(ConfigError, match=words):
        config_files.load({'config_file': path}, SECRET_OPTS)


def test_an_error_text_never_contains_a_secret(conf_file):
    opts = [cfg.IntOpt('admin_password', secret=True)]
    with pytest.raises(ConfigError) as raised:
        config_files.load({'config_file': conf_file('[DEFAULT]\nadmin_password = hunter2\n')}, opts)
    assert 'hunter2' not in str(raised.value)
    assert 'admin_password' in str(raised.value)


def test_files_are_the_named_ones():
    assert config_files.files({'config_file': ' /a.ini, /b.ini ,'}) == ['/a.ini', '/b.ini']


SECRET_OPTS = [
    cfg.StrOpt('metadata_proxy_shared_secret', required=True, secret=True, help='Secret shared with Nova.'),
    cfg.StrOpt('metadata_proxy_shared_secret_file'),
]


def test_a_secret_is_read_from_its_own_file(conf_file, tmp_path):
    (tmp_path / 'secret').write_text(' of a file \n')
    path = conf_file(f'[DEFAULT]\nmetadata_proxy_shared_secret_file = {tmp_path}/secret\n')
    conf = config_files.load({'config_file': path}, SECRET_OPTS)
    assert conf.metadata_proxy_shared_secret == ' of a file '


def test_a_secret_is_read_from_a_systemd_credential_unless_it_is_set(conf_file, tmp_path, monkeypatch):
    (tmp_path / 'metadata_proxy_shared_secret').write_text('of systemd')
    monkeypatch.setenv('CREDENTIALS_DIRECTORY', str(tmp_path))
    assert config_files.load({'config_file': conf_file('[DEFAULT]\n')}, SECRET_OPTS)[
        'metadata_proxy_shared_secret'
    ] == ('of systemd')
    path = conf_file('[DEFAULT]\nmetadata_proxy_shared_secret = set\n')
    assert config_files.load({'config_file': path}, SECRET_OPTS).metadata_proxy_shared_secret == 'set'


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        (
            'metadata_proxy_shared_secret = s3cr3t\nmetadata_proxy_shared_secret_file = /x\n',
            'are both set in [DEFAULT]',
        ),
        ('metadata_proxy_shared_secret_file = /nonexistent/x\n', '_file = /nonexistent/x: No such file or directory'),
        ('metadata_proxy_shared_secret_file = /dev/null\n', '_file = /dev/null: is empty'),
        ('metadata_proxy_shared_secret\ns3cr3t\n', 'not a configuration file: '),
        ('metadata_proxy_shared_secret = s3cr3t$x\n', 'metadata_proxy_shared_secret in [DEFAULT] of '),
    ],
)
def test_an_error_about_a_secret_does_not_contain_it(conf_file, text, words):
    with pytest.raises(ConfigError) as raised:
        config_files.load({'config_file': conf_file('[DEFAULT]\n' + text)}, SECRET_OPTS)
    text = ''.join(traceback.format_exception(raised.value))
    assert words in text
    assert 's3cr3t' not in text


def test_inside_parsed_once_the_files_are_parsed_once(conf_file):
    """A change of the file is seen by the next load, which a SIGHUP starts, and by no part of this one."""
    global_conf = {'config_file': conf_file('[DEFAULT]\nanswer_within = 4\n')}

    def value(group='DEFAULT'):
        return config_files.load(global_conf, OPTS[:1], group)

    with config_files.parsed_once():
        assert value().answer_within == 4.0
        conf_file('[DEFAULT]\nanswer_within = 5\n[static]\nanswer_within = 6\n')
        with config_files.parsed_once():
            assert value().answer_within == 4.0
        assert value('static').static.answer_within == 9.0
    assert (value().answer_within, value('static').static.answer_within) == (5.0, 6.0)


def test_inside_parsed_once_an_option_may_be_declared_twice_with_another_help(conf_file):
    global_conf = {'config_file': conf_file('[DEFAULT]\nanswer_within = 4\n')}
    with config_files.parsed_once():
        for text in ('One.', 'Two.'):
            conf = config_files.load(global_conf, [cfg.FloatOpt('answer_within', help=text)])
            assert conf.answer_within == 4.0


def test_inside_parsed_once_a_secret_of_its_own_file_may_be_loaded_twice(conf_file, tmp_path):
    (tmp_path / 'secret').write_text('of a file\n')
    global_conf = {'config_file': conf_file(f'[DEFAULT]\nmetadata_proxy_shared_secret_file = {tmp_path}/secret\n')}
    with config_files.parsed_once():
        for _ in range(2):
            assert config_files.load(global_conf, SECRET_OPTS).metadata_proxy_shared_secret == 'of a file'


def test_a_directory_stands_for_its_conf_files_sorted_by_name(conf_file, tmp_path):
    """A file that is added later is read at the next load, which a SIGHUP starts."""
    first = conf_file('[DEFAULT]\nanswer_within = 4\nnova_metadata_host = 192.0.2.1\n')
    directory = tmp_path / 'conf.d'
    directory.mkdir()
    (directory / '20.conf').write_text('[DEFAULT]\nanswer_within = 6\n')
    (directory / '10.conf').write_text('[DEFAULT]\nanswer_within = 5\n')
    (directory / '30.ini').write_text('[DEFAULT]\nanswer_within = 7\n')
    global_conf = config_files.to_global_conf([first, str(directory)])
    assert config_files.files(global_conf) == [first, str(directory / '10.conf'), str(directory / '20.conf')]
    conf = config_files.load(global_conf, [OPTS[0], OPTS[2]])
    assert (conf.answer_within, conf.nova_metadata_host) == (6.0, '192.0.2.1')
    (directory / '40.conf').write_text('[DEFAULT]\nanswer_within = 8\n')
    assert config_files.load(global_conf, OPTS[:1]).answer_within == 8.0


@pytest.mark.parametrize(
    ('argv', 'paths', 'rest'),
    [
        (['--config-file', 'a', '--config-dir', 'd', '--config-file=b', '--debug'], ['a', 'd', 'b'], ['--debug']),
        (['--config-dir=d', '--log-file', 'x'], ['d'], ['--log-file', 'x']),
        ([], [], []),
    ],
)
def test_files_and_directories_keep_the_order_of_the_command_line(argv, paths, rest):
    assert config_files.split_arguments(argv) == (paths, rest)


@pytest.mark.parametrize(
    ('line', 'name'),
    [
        ('nova_metadata_host = controller  # here', 'nova_metadata_host'),
        ('nova_metadata_ip = controller\t# here', 'nova_metadata_host'),
        ('metadata_proxy_shared_secret = METADATA_SECRET\t# größer', 'metadata_proxy_shared_secret'),
        ('answer_within = 4 # seconds', 'answer_within'),
    ],
)
def test_a_comment_behind_a_value_is_refused(conf_file, line, name):
    with pytest.raises(ConfigError) as raised:
        config_files.load({'config_file': conf_file(f'[DEFAULT]\n{line}\n')}, [OPTS[0], OPTS[2], *SECRET_OPTS])
    assert str(raised.value).startswith(f'{name} in [DEFAULT] of /')
    assert 'METADATA_SECRET' not in str(raised.value)
    assert ('metadata_proxy_shared_secret_file' in str(raised.value)) == (name == 'metadata_proxy_shared_secret')


def test_a_secret_may_contain_a_hash_sign(conf_file, tmp_path):
    path = conf_file('[DEFAULT]\nmetadata_proxy_shared_secret = poc#pass\n')
    assert config_files.load({'config_file': path}, SECRET_OPTS).metadata_proxy_shared_secret == 'poc#pass'
    (tmp_path / 'secret').write_text('with # sign\n')
    path = conf_file(f'[DEFAULT]\nmetadata_proxy_shared_secret_file = {tmp_path}/secret\n')
    assert config_files.load({'config_file': path}, SECRET_OPTS).metadata_proxy_shared_secret == 'with # sign'
