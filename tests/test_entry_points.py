# SPDX-License-Identifier: Apache-2.0
"""The entry points and options of the package."""

import configparser
import inspect
from importlib.metadata import distribution, entry_points
from pathlib import Path

import pytest
from oslo_config import cfg

from metadata_wsgi.cli import option_registry
from metadata_wsgi.lookup import neutron

SETUP = Path(__file__).parent.parent / 'setup.cfg'
OURS = list(distribution('metadata_wsgi').entry_points)


@pytest.mark.parametrize('entry', OURS, ids=lambda entry: f'{entry.group}:{entry.name}')
def test_an_entry_point_resolves(entry):
    assert callable(entry.load())


def test_the_installed_entry_points_are_those_of_setup_cfg():
    """If this fails, the package was installed before the entry points changed: install it again."""
    parser = configparser.ConfigParser()
    parser.read(SETUP)
    declared = {
        (group, *(part.strip() for part in line.split('=')))
        for group, lines in parser['options.entry_points'].items()
        for line in lines.strip().splitlines()
    }
    assert {(entry.group, entry.name, entry.value) for entry in OURS} == declared


@pytest.mark.parametrize('entry', [*entry_points(group='paste.filter_factory')], ids=lambda entry: f'{entry.value}')
def test_a_filters_factory_takes_no_options_of_the_paste_file(entry):
    """An option of a filter in the paste file is refused, not ignored."""
    if entry.value.startswith('metadata_wsgi.'):
        kinds = {parameter.kind for parameter in inspect.signature(entry.load()).parameters.values()}
        assert inspect.Parameter.VAR_KEYWORD not in kinds


def test_every_option_has_a_help_text_and_is_declared_once():
    published = [(group, opt) for group, options in option_registry.list_opts() for opt in options]
    ours = [opt for group, opt in published if group not in neutron.GROUPS]  # the others are those of keystoneauth
    assert [opt.name for opt in ours if not (opt.help or '').endswith('.')] == []
    names = [(group, opt.name) for group, opt in published]
    assert sorted(set(names)) == sorted(names)


def test_every_published_option_can_be_registered_at_once():
    conf = cfg.ConfigOpts()
    for group, options in option_registry.list_opts():
        conf.register_opts(options, group=None if group == 'DEFAULT' else group)


def test_secret_options_are_marked_as_secret():
    """oslo.config masks only options marked as secret in its logs."""
    unmarked = {
        opt.name
        for _, options in option_registry.list_opts()
        for opt in options
        if not opt.secret
        and not opt.name.endswith('_file')
        and any(word in opt.name for word in ('secret', 'admin_password', 'token'))
    }
    assert unmarked == set()


@pytest.mark.parametrize(
    'name',
    [
        'auth_url', 'admin_user', 'admin_password', 'admin_tenant_name', 'auth_region', 'endpoint_type',
        'nova_metadata_ip', 'nova_metadata_port', 'metadata_proxy_shared_secret', 'metadata_proxy_socket',
        'nova_metadata_host', 'nova_metadata_protocol', 'nova_metadata_insecure', 'nova_client_cert',
        'nova_client_priv_key', 'auth_ca_cert', 'metadata_proxy_socket_mode', 'metadata_workers', 'metadata_backlog',
    ],
)  # fmt: skip
def test_an_option_name_of_grizzly_or_neutron_is_known(name):
    """An existing metadata_agent.ini works without changes."""
    options = dict(option_registry.list_opts())['DEFAULT']
    known = {opt.dest for opt in options} | {
        old.name.replace('-', '_') for opt in options for old in opt.deprecated_opts
    }
    assert name in known
