# SPDX-License-Identifier: Apache-2.0
"""Files in /run/netns that are no namespaces. With real namespaces beside them: tests/netns/test_stray_files.py."""

import errno
import os

import pytest

from metadata_wsgi.cli import watch
from metadata_wsgi.cli.reconciler import Reconciler
from metadata_wsgi.errors import NetnsError
from metadata_wsgi.net.sd_notify import Notifier
from metadata_wsgi.netns import attachment_status, namespaces
from metadata_wsgi.netns.attach import Attacher
from metadata_wsgi.netns.proxy_command import ProxyCommand
from metadata_wsgi.netns.target import AttachTarget

STALE = 'qrouter-00000000-0000-4000-8000-000000000000'


class NoRules:
    """A RuleReader of namespaces without rules."""

    def ours(self, namespace, *, families):
        return []

    def redirect_ports(self, namespace):
        return set()


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
    assert watch.NamespaceListing()() == {('router', STALE.removeprefix('qrouter-')): (None, '')}


def test_watch_lists_again_soon_if_a_namespace_is_mounted_just_after_the_listing(directory, monkeypatch):
    """inotify has reported the file already, and does not report the mount."""
    (directory / 'qrouter-new-router').touch()
    listing = watch.NamespaceListing()
    assert ('router', 'new-router') not in listing()
    monkeypatch.setattr(namespaces, '_nsfs_device', lambda: os.stat(directory).st_dev)
    assert listing.has_pending
    assert ('router', 'new-router') in listing()
    assert not listing.has_pending


def test_watch_does_not_wait_for_a_name_that_it_does_not_attach(directory):
    for name in ('cni-new', 'qdhcp-new-network'):
        (directory / name).touch()
    listing = watch.NamespaceListing('router')
    listing()
    assert not listing.has_pending


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


def test_names_of_a_host_without_namespaces_are_none(tmp_path, monkeypatch):
    monkeypatch.setattr(namespaces, 'DIRECTORY', str(tmp_path / 'missing'))
    assert (namespaces.names(), namespaces.stale_names()) == ([], [])


@pytest.fixture
def unreadable_directory(directory, monkeypatch):
    def listdir(path):
        raise OSError(errno.EMFILE, 'Too many open files', path)

    monkeypatch.setattr(namespaces.os, 'listdir', listdir)
    return directory


@pytest.mark.parametrize(
    'function', [namespaces.names, namespaces.stale_names, lambda: namespaces.name_of(os.getpid())]
)
def test_directory_that_cannot_be_listed_is_not_an_empty_one(unreadable_directory, function):
    with pytest.raises(NetnsError, match=f'{unreadable_directory} cannot be read: Too many open files'):
        function()


def test_watch_detaches_nothing_while_the_directory_cannot_be_listed(unreadable_directory, caplog):
    """It took every router for deleted."""

    class NoActions:
        def __getattr__(self, name):
            raise AssertionError(name)

    listing = watch.NamespaceListing()
    reconciler = Reconciler(listing, NoActions())
    watch._reconcile(lambda: reconciler.start([('router', 'left-over')]), reconciler, Notifier())
    watch._reconcile(reconciler.reconcile, reconciler, Notifier())
    assert caplog.text.count('Nothing was reconciled this time') == 2
    assert not listing.has_pending
