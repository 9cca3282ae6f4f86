# SPDX-License-Identifier: Apache-2.0
"""Options that attach, detach and attached share; many targets at a time."""

import argparse
import threading

from metadata_wsgi.cli import attach, attach_command, shared_proxy
from metadata_wsgi.netns import namespaces
from metadata_wsgi.netns.target import AttachTarget


def parse(*argv):
    parser = argparse.ArgumentParser()
    attach_command.add_common_options(parser)
    return parser.parse_args(argv)


def test_flags_override_the_config_file_and_the_socket_follows_the_state_path(tmp_path):
    file = tmp_path / 'agent.ini'
    file.write_text('[DEFAULT]\nstate_path = /from/file\n')
    common = ['--config-file', str(file)]
    assert attach_command._paths(parse(*common)) == ('/from/file', '/from/file/metadata_proxy')
    assert attach_command._paths(parse(*common, '--state-path', '/flag')) == ('/flag', '/flag/metadata_proxy')
    assert attach_command._paths(parse(*common, '--metadata-proxy-socket', '/s')) == ('/from/file', '/s')


def test_neutron_lock_path_comes_from_the_option_or_from_neutron_conf(tmp_path):
    file = tmp_path / 'neutron.conf'
    file.write_text('[DEFAULT]\nstate_path = /var/lib/neutron\n[oslo_concurrency]\nlock_path = $state_path/lock\n')
    common = ['--config-file', str(file)]
    assert attach_command._neutron_lock(parse(*common))._lock_path == '/var/lib/neutron/lock'
    assert attach_command._neutron_lock(parse(*common, '--neutron-lock-path', '/tmp'))._lock_path == '/tmp'
    assert attach_command._neutron_lock(parse())._lock_path == ''


def test_unexpected_error_at_one_target_does_not_stop_the_others(caplog):
    def action(target):
        if target.uuid == '0001':
            raise KeyError('IFLA_IFNAME')
        return target.uuid

    targets = [AttachTarget.of('router', f'{number:04}') for number in range(3)]
    results = attach_command.run_for_each(targets, action, concurrency=3)
    assert results == [('0000', ''), ('', "KeyError: 'IFLA_IFNAME'"), ('0002', '')]
    assert 'router 0001: unexpected error' in caplog.text


def test_bulk_rules_are_used_from_the_threshold_on():
    assert attach_command._bulk_rules(3) == ()
    rules = attach_command._bulk_rules(4, port=9000)
    assert any('9000' in str(rule) for rule in rules)


def test_no_target_is_attached_in_mode_shared_before_keeper_and_shared_proxy_have_started(tmp_path, monkeypatch):
    """Before, only the first of several new targets waited for the start."""
    modes, has_started, starts = [], threading.Event(), []
    second = threading.Thread(target=lambda: modes.append((command.mode(target), has_started.is_set())))

    class SlowSharedProxy(shared_proxy.SharedProxy):
        def ensure_running(self):
            starts.append(self.state_path)
            second.start()
            second.join(0.1)
            has_started.set()

    parser = argparse.ArgumentParser()
    attach.add_verbs(parser.add_subparsers())
    args = parser.parse_args(['attach', '--router-id=any-id', f'--state-path={tmp_path}'])
    command, target = attach_command.AttachCommand(args, {}, count=2), AttachTarget.of('router', '0001')
    monkeypatch.setattr(shared_proxy, 'SharedProxy', SlowSharedProxy)
    monkeypatch.setattr(namespaces, 'exists', lambda name: True)
    assert command.mode(AttachTarget.of('router', '0000')) == 'shared'
    second.join()
    assert modes == [('shared', True)]
    assert starts == [str(tmp_path)]
