# SPDX-License-Identifier: Apache-2.0
"""Misspelt names and world-readable secrets in the configuration files."""

from pathlib import Path

import pytest

from metadata_wsgi.config import file_warnings

from .test_config_files import OPTS, SECRET_OPTS


def test_a_misspelt_name_is_found_and_the_right_one_suggested(conf_file):
    path = conf_file('[DEFAULT]\nanswer_withn = 4\n')
    assert file_warnings.misspelt([path], [('DEFAULT', OPTS)]) == [
        f'answer_withn in [DEFAULT] of {path} is not an option; did you mean answer_within?'
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
def test_names_of_other_programs_are_accepted(conf_file, text):
    assert file_warnings.misspelt([conf_file(text)], [('DEFAULT', OPTS)]) == []


def test_a_world_readable_secret_is_named(conf_file, tmp_path):
    known = [('DEFAULT', SECRET_OPTS)]
    secret = tmp_path / 'secret'
    secret.write_text('s')
    path = conf_file(f'[DEFAULT]\nmetadata_proxy_shared_secret_file = {secret}\n')
    secret.chmod(0o600)
    assert file_warnings.world_readable_secrets([path], known) == []
    secret.chmod(0o644)
    (sentence,) = file_warnings.world_readable_secrets([path], known)
    assert sentence == (
        f'{secret} contains a secret and every user can read it (mode 0644); chmod o-r {secret}, '
        'and let the group of the agent read it (chgrp)'
    )
    with_secret = tmp_path / conf_file('[DEFAULT]\nmetadata_proxy_shared_secret = s\n', 'b.ini')
    with_secret.chmod(0o604)
    assert len(file_warnings.world_readable_secrets([with_secret], known)) == 1
    with_secret.chmod(0o640)
    assert file_warnings.world_readable_secrets([with_secret], known) == []


FOREIGN = """[DEFAULT]
nova_admin_username = nova
nova_admin_tenant_name = services
nova_admin_password = x
nova_url = http://192.0.2.10:8774/v2
quantum_metadata_proxy_shared_secret = x
neutron_metadata_proxy_shared_secret = x
api_paste_config = /etc/neutron/api-paste.ini
"""


def test_options_of_neutron_and_nova_in_the_same_files_are_not_taken_for_misspelt_ones(conf_file):
    assert file_warnings.misspelt([conf_file(FOREIGN)], file_warnings.all_options()) == []


def test_a_misspelt_name_is_a_warning(conf_file, caplog):
    """It may be an option of a program that is not known here, so it is no error."""
    file_warnings.log_misspelt_names({'config_file': conf_file('[DEFAULT]\nmetadata_proxy_shared_secrett = s\n')})
    (record,) = caplog.records
    assert record.levelname == 'WARNING'
    assert record.getMessage().endswith('is not an option; did you mean metadata_proxy_shared_secret?')


@pytest.mark.parametrize(
    ('text', 'count'),
    [
        ('[keystone_authtoken]\npassword = s\n', 1),
        ('[DEFAULT]\npassword = s\n', 1),
        ('[neutron]\napplication_credential_secret = s\n', 1),
        ('[nova]\npassword = s\n', 0),
        ('[keystone_authtoken]\n# password = s\npassword =\n', 0),
    ],
)
def test_a_world_readable_password_of_keystone_is_named(conf_file, text, count):
    path = conf_file(text)
    Path(path).chmod(0o644)
    assert len(file_warnings.world_readable_secrets([path], [('DEFAULT', SECRET_OPTS)])) == count
