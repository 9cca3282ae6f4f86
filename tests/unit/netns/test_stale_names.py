# SPDX-License-Identifier: Apache-2.0
"""Files in /run/netns that are no namespaces. With real namespaces beside them: tests/netns/test_stray_files.py."""

import os

import pytest

from metadata_wsgi.cli import watch
from metadata_wsgi.errors import NetnsError
from metadata_wsgi.netns import attachment_status, namespaces
from metadata_wsgi.netns.attach import Attacher
from metadata_wsgi.netns.proxy_command import ProxyCommand
from metadata_wsgi.netns.target import AttachTarget

STALE = 'qrouter-00000000-0000-4000-8000-000000000000'


class NoRules:
    """A RuleReader of namespaces without rules."""

    def ours(self, namespace, *, families):
        return []


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.setattr(namespaces, 'DIRECTORY', str(tmp_path))
    for name in (STALE, 'cni-stale'):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1, 1))
    return tmp_path


def test_stale_name_is_not_a_namespace(directory):
    assert (namespaces.names(), namespaces.exists(STALE), namespaces.identity(STALE)) == ([], False, None)
    assert namespaces.stale_names() == ['cni-stale', STALE]


def test_new_file_may_become_a_namespace(directory):
    (directory / 'qrouter-new').touch()
    assert 'qrouter-new' in namespaces.stale_names()
    assert 'qrouter-new' not in namespaces.stale_names(min_age_s=3600)


def test_stale_name_is_reported_and_one_of_another_program_is_not(directory, tmp_path):
    (status,) = attachment_status.list_attachments(NoRules(), state_path=str(tmp_path / 'state'))
    assert (status.kind, status.namespace, status.problems[0]) == (
        'router',
        None,
        f'{directory}/{STALE} is a file and not a namespace; remove it: ip netns delete {STALE}',
    )


def test_attach_to_a_stale_name_says_so(directory, tmp_path):
    attacher = Attacher(None, proxy=ProxyCommand(state_path=str(tmp_path / 'state')))
    with pytest.raises(NetnsError, match=f'{STALE} is a file and not a namespace; remove it: ip netns delete {STALE}'):
        attacher.attach(AttachTarget.of('router', STALE.removeprefix('qrouter-')))


def test_watch_lists_a_stale_name_so_that_it_is_reported(directory):
    assert watch.watched_namespaces(None) == {('router', STALE.removeprefix('qrouter-')): (None, '')}


def test_error_in_one_namespace_does_not_hide_the_others(tmp_path, monkeypatch):
    """E.g. it was deleted between the listing and the look at it."""

    class BrokenRules:
        def ours(self, namespace, *, families):
            if namespace == 'qrouter-broken':
                raise NetnsError('iptables-save: exit code 1')
            return []

    monkeypatch.setattr(namespaces, 'names', lambda: ['cni-broken', 'qrouter-broken', 'qrouter-empty'])
    monkeypatch.setattr(namespaces, 'stale_names', lambda min_age_s=0: [])
    monkeypatch.setattr(namespaces, 'exists', lambda name: True)
    found = attachment_status.list_attachments(BrokenRules(), state_path=str(tmp_path))
    assert [(one.uuid, one.problems) for one in found] == [('broken', ('iptables-save: exit code 1',))]
