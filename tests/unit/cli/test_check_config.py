# SPDX-License-Identifier: Apache-2.0
"""What ``metadata-wsgi check-config`` prints about credentials, visibility, Nova and foreign options."""

import functools
import json
import os
from types import SimpleNamespace

import pytest

from metadata_wsgi import instruments
from metadata_wsgi.cli import check_config, main
from tests.clients.fake_openstack import OUR_PROJECT, PASSWORD, FakeOpenStack, port
from tests.cloud import SECRET, SHIPPED, Cloud

NEUTRON_CONF = """[DEFAULT]
core_plugin = ml2
api_paste_config = /etc/neutron/api-paste.ini
nova_admin_tenant_name = services
answer_withn = 4
[keystone_authtoken]
auth_url = http://127.0.0.1:{port}/v3
auth_type = password
username = {user}
password = {password}
project_name = service
user_domain_id = default
project_domain_id = default
"""
METADATA_AGENT = """[DEFAULT]
metadata_proxy_shared_secret = {secret}
nova_metadata_host = 127.0.0.1
nova_metadata_port = {nova_port}
"""


FILES = {'neutron.conf': NEUTRON_CONF, 'metadata_agent.ini': METADATA_AGENT}


@pytest.fixture
def check(tmp_path, capsys):
    """A function: ports of the cloud, user, secret -> (exit code, standard output, standard error)."""

    def run(*ports, user='service', secret=SECRET, nova_statuses=(), network_owners=(), words=()):
        with FakeOpenStack(ports, network_owners) as openstack, Cloud(tmp_path) as cloud:
            cloud.nova.statuses += nova_statuses
            values = {
                'port': openstack.listen_port, 'user': user, 'password': PASSWORD, 'secret': secret,
                'nova_port': cloud.server.server_port,
            }  # fmt: skip
            files = {name: text.format_map(values) for name, text in FILES.items()}
            argv = ['check-config', '--neutron', *words]
            for name, text in files.items():
                (tmp_path / name).write_text(text)
                (tmp_path / name).chmod(0o600)
                argv += ['--config-file', str(tmp_path / name)]
            code = main.main(argv)
        return code, *capsys.readouterr()

    return run


def states(out):
    """part -> state of the output in JSON; a part with several findings has the worst."""
    found = {}
    for one in json.loads(out):
        found[one['part']] = one['state'] if found.get(one['part'], 'well') == 'well' else found[one['part']]
    return found


GUEST = port('network-a', 'compute:nova', 'instance-a', 'project-a', '10.1.1.2')


def test_it_prints_the_credentials_and_their_file(check, tmp_path):
    code, out, err = check(GUEST)
    assert (code, err) == (0, '')
    assert (
        'credentials     user service of project service, from auth_type = password in [keystone_authtoken] of '
        f'{tmp_path}/neutron.conf' in out
    )
    assert PASSWORD not in out
    assert out.endswith('ok\n')


def test_it_names_a_misspelt_option_and_the_paste_file_of_another_program_as_notes(check):
    _, out, _ = check(GUEST)
    notes = [line for line in out.splitlines() if line.startswith('note ')]
    assert len(notes) == 2
    assert 'answer_withn' in notes[0]
    assert 'api_paste_config = /etc/neutron/api-paste.ini is not used' in notes[1]


def test_exit_code_2_if_no_port_of_another_project_is_visible(check):
    """The cloud is empty, or the policy hides its ports: that cannot be told apart without a request."""
    code, out, err = check()
    assert code == 2
    assert 'ok' not in out.splitlines()
    assert err.startswith('directory: cannot tell whether the agent sees every instance: ')
    assert 'shows no ports of other projects to the roles service: either there are none yet, or its policy' in err


def test_exit_code_2_if_the_role_may_see_only_a_part_of_the_ports(check):
    """A member also sees the ports of others on the networks of its own project."""
    code, out, err = check({**GUEST, 'shared_by': OUR_PROJECT}, user='member')
    assert code == 2
    assert 'ok' not in out.splitlines()
    assert err.startswith('directory: cannot tell whether the agent sees every instance: ')
    assert 'to the roles member, but by its default policy only those on networks of their own project' in err
    assert 'Boot an instance' not in err


def test_networks_of_other_projects_are_enough_in_a_cloud_without_ports(check):
    code, out, err = check(network_owners=['project-a'])
    assert (code, err) == (0, '')
    assert 'shows networks of other projects, which have no ports yet; roles: service' in out


def test_exit_code_1_if_something_is_wrong_in_an_empty_cloud(check):
    code, _, err = check(secret='another')
    assert code == 1
    assert 'in nova.conf differ' in err


def test_it_fails_if_the_role_sees_nothing(check):
    code, _, err = check(GUEST, user='reader')
    assert code == 1
    assert 'give the user the role service (or admin)' in err


def test_it_checks_that_nova_has_the_same_secret(check):
    assert 'Nova            checks signatures and has the same shared secret' in check(GUEST)[1]
    code, _, err = check(GUEST, secret='another')
    assert code == 1
    assert 'metadata_proxy_shared_secret here and [neutron] metadata_proxy_shared_secret in nova.conf differ' in err


def test_it_checks_that_nova_checks_signatures(check):
    """service_metadata_proxy is off, or misspelt: 404 to every signature."""
    code, _, err = check(GUEST, nova_statuses=[404])
    assert code == 1
    assert 'Set [neutron] service_metadata_proxy = true in nova.conf' in err


def test_format_json_has_a_state_for_each_check(check):
    code, out, err = check(GUEST, words=['-f', 'json'])
    assert (code, err) == (0, '')
    assert states(out) == dict.fromkeys(
        ['configuration', 'note', 'paste file', 'pipeline', 'credentials', 'directory', 'Nova'], 'well'
    )


def test_format_json_has_every_problem_and_exit_code_1(check):
    code, out, err = check(GUEST, user='reader', secret='another', words=['-f', 'json'])
    assert (code, err) == (1, '')
    found = states(out)
    assert (found['directory'], found['Nova'], found['pipeline']) == ('not well', 'not well', 'well')


def test_format_value_of_a_configuration_that_does_not_load_has_the_reason(tmp_path, capsys):
    assert main.main(['check-config', '-f', 'value', '--config-file', str(tmp_path / 'none.ini')]) == 1
    out, err = capsys.readouterr()
    assert out == (
        f'configuration well {tmp_path}/none.ini \n'
        f'start not well config_file: {tmp_path}/none.ini is no file or directory; name one that exists \n'
    )
    assert err == ''


def test_nothing_is_counted_for_metrics_by_a_verb_that_loads_the_pipeline(monkeypatch):
    """Root may run it, and the directory of the counts belongs to the workers."""
    counted = []

    def load(*arguments, only_check):
        instruments.RETRIES.connect(counted.append)
        return 'app'

    monkeypatch.setattr(check_config.paste_loader, 'load', load)
    args = SimpleNamespace(config_file=[], neutron=False, paste_file='paste.ini', pipeline='agent')
    assert check_config.load(args) == ('paste.ini', 'app')
    instruments.RETRIES.add('nova')
    assert counted == []


@pytest.fixture
def metrics_directory(tmp_path):
    return tmp_path / 'run' / 'metrics'


@pytest.fixture
def verb(tmp_path, capsys, metrics_directory):
    """A function: a verb and its arguments -> (exit code, output, errors), for a pipeline with the filter metrics."""
    paste = tmp_path / 'api-paste.ini'
    shipped = SHIPPED.read_text().replace(' request_id ', ' request_id metrics ')
    with Cloud(tmp_path) as cloud:
        # It has a secret.
        cloud.conf_file.chmod(0o600)
        if os.geteuid() == 0:
            os.chown(cloud.conf_file, 65534, 65534)
        text = f'{cloud.conf_file.read_text()}[metrics]\ndirectory = {metrics_directory}\n'

        def run(*words, options='', listen='', pipelines=(), call=lambda function, *args: function(*args)):
            paste.write_text(functools.reduce(lambda now, change: now.replace(*change), pipelines, shipped))
            metrics = f'listen = {listen}\n' if listen else ''
            cloud.conf_file.write_text(text.replace('[DEFAULT]\n', f'[DEFAULT]\n{options}\n') + metrics)
            files = ['--config-file', str(cloud.conf_file), '--paste-file', str(paste)]
            return call(main.main, [words[0], *files, *words[1:]]), *capsys.readouterr()

        yield run


VERBS = {
    'check-config': ['check-config'],
    'show-pipeline': ['show-pipeline'],
    'explain': ['explain', '--router-id', 'router-a', '10.1.1.2'],
}


@pytest.mark.parametrize('words', VERBS.values(), ids=VERBS)
def test_a_verb_that_loads_the_pipeline_does_not_make_the_metrics_directory(verb, metrics_directory, words):
    code, out, err = verb(*words)
    assert (code, err) == (0, '')
    assert 'metrics' in out
    assert not metrics_directory.parent.exists()


WRONG_ORDER = ('deadline socket_source instance', 'instance deadline socket_source')


def test_it_fails_if_the_pipeline_one_hop_does_not_load(verb):
    """The agent would not start either."""
    code, _, err = verb('check-config', options='metadata_one_hop = true', pipelines=[WRONG_ORDER])
    assert code == 1
    assert err.startswith('metadata_one_hop is set, and the pipeline one_hop does not load: ')


def test_it_shows_the_pipeline_one_hop_if_the_agent_serves_this_mode(verb):
    code, out, _ = verb('check-config', options='metadata_one_hop = true')
    assert code == 0
    shown = [line.partition(' ')[::2] for line in out.splitlines() if line.startswith('pipeline')]
    assert [name for name, _ in shown] == ['pipeline', 'pipeline']
    assert 'header_source' in shown[0][1]
    assert 'socket_source' in shown[1][1]


def test_a_note_names_the_filters_that_only_the_pipeline_agent_has(verb):
    pipelines = [(' metrics deadline socket_source', ' deadline socket_source')]
    code, out, _ = verb('check-config', options='metadata_one_hop = true', pipelines=pipelines)
    assert code == 0
    assert [line for line in out.splitlines() if line.startswith('note ')] == [
        'note            mode one_hop is served without filters that the pipeline agent has: metrics'
    ]


def test_the_pipeline_one_hop_is_not_checked_if_the_agent_does_not_serve_this_mode(verb):
    code, out, _ = verb('check-config', pipelines=[WRONG_ORDER])
    assert code == 0
    assert 'socket_source' not in out


def test_it_fails_if_the_agent_would_serve_metrics_that_no_filter_counts(verb):
    """The agent would not start either."""
    code, _, err = verb('check-config', listen='127.0.0.1:9698', pipelines=[(' metrics ', ' ')])
    assert code == 1
    assert 'the pipeline has no filter metrics' in err


@pytest.mark.parametrize('option', ['--router-id=router-a', '--network-id=network-c'])
def test_explain_traces_the_pipeline_one_hop(verb, option):
    code, out, err = verb('explain', '--pipeline', 'one_hop', option, '10.1.1.2')
    assert (code, err) == (0, '')
    steps = {line.split()[0]: line for line in out.splitlines()}
    assert f'10.1.1.2 behind {option[2:].replace("-id=", " ")} ' in steps['socket_source']
    assert 'signature' in steps


def test_explain_of_the_pipeline_one_hop_names_a_wrong_address(verb):
    code, _, err = verb('explain', '--pipeline', 'one_hop', '--router-id=router-a', '10.1.1')
    assert code == 1
    assert err == 'metadata-wsgi explain: 10.1.1 is not an IP address\n'


@pytest.fixture
def as_nobody():
    """A function that calls another one as the user nobody, if root runs the tests."""

    def call(function, *args):
        if os.geteuid():
            return function(*args)
        os.seteuid(65534)
        try:
            return function(*args)
        finally:
            os.seteuid(0)

    return call


@pytest.mark.parametrize('exists', [True, False])
@pytest.mark.parametrize('options', ['', 'metadata_user = 12345\nmetadata_group = 12345'])
@pytest.mark.parametrize('words', VERBS.values(), ids=VERBS)
def test_a_verb_works_for_a_user_who_cannot_write_the_metrics_directory(
    verb, metrics_directory, as_nobody, words, options, exists
):
    verb(*words)  # root imports all modules
    (metrics_directory if exists else metrics_directory.parent).mkdir(parents=True)
    (metrics_directory if exists else metrics_directory.parent).chmod(0o555)
    code, out, err = verb(*words, options=options, call=as_nobody)
    if words != ['check-config']:
        assert (code, err) == (0, '')
        return
    assert code == 2
    assert 'ok' not in out.splitlines()
    assert err.startswith('metrics: cannot tell whether the agent can count: ')
    assert err.endswith('. Run the command as root, or as the user that starts the agent\n')


@pytest.mark.skipif(os.geteuid() != 0, reason='only root can give a directory to another user')
def test_it_fails_if_the_workers_cannot_write_the_metrics_directory(verb, metrics_directory):
    metrics_directory.mkdir(parents=True)
    os.chown(metrics_directory, 4711, 4711)
    code, _, err = verb('check-config', '-f', 'json')
    assert (code, err) == (1, '')
    code, _, err = verb('check-config')
    assert code == 1
    assert 'belongs to uid 4711, and the workers, uid ' in err
