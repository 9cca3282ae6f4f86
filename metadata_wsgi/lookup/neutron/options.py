# SPDX-License-Identifier: Apache-2.0
"""How Quantum is reached: the operator's options, made into a keystoneauth session.

Grizzly's options name a user, a password and a project. Its ``auth_url`` often ends in ``/v2.0``, an API that
Keystone no longer has; the same credentials are then given to its v3 API, in the domain ``default``, where
Keystone put those users. Whatever else keystoneauth knows goes through ``[quantum]`` (or ``[neutron]``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import requests
from keystoneauth1 import exceptions, loading
from keystoneauth1.identity import v3
from keystoneauth1.session import Session
from oslo_config import cfg

from metadata_wsgi.config import config_files, tls_options
from metadata_wsgi.errors import ConfigError
from metadata_wsgi.lookup.neutron.auth import Access
from metadata_wsgi.lookup.neutron.ports_api import PortsApi
from metadata_wsgi.lookup.neutron.transport import BoundedAdapter

OPTS = [
    cfg.StrOpt('auth_url', help='Keystone, for example http://127.0.0.1:5000/v3; with the four options below.'),
    cfg.StrOpt('admin_user', help='User whose role may see the ports of every project (service or admin).'),
    cfg.StrOpt('admin_password', secret=True, help="That user's password."),
    cfg.StrOpt('admin_password_file', help='A file with the password, instead of the option above.'),
    cfg.StrOpt('admin_tenant_name', help='Project in which the user has that role.'),
    cfg.StrOpt('auth_region', help="Region of Quantum in Keystone's catalogue, by default the first one there."),
    cfg.StrOpt(
        'endpoint_type',
        default='adminURL',
        choices=['adminURL', 'internalURL', 'publicURL', 'admin', 'internal', 'public'],
        help="Which of Quantum's endpoints in the catalogue is asked.",
    ),
    cfg.BoolOpt('auth_insecure', default=False, help="Accept any certificate of Keystone's and Quantum's. For tests."),
    cfg.IntOpt('quantum_connections', default=8, min=1, help='Questions to Quantum at a time, of each worker.'),
]

GROUPS = ('quantum', 'neutron')
GROUP_OPTS = [
    *loading.get_auth_common_conf_options(),
    *loading.get_session_conf_options(),
    *loading.get_adapter_conf_options(),
]
"""Of ``[quantum]``; the plugin that ``auth_type`` names adds its own."""


@dataclass(frozen=True, slots=True)
class Connection:
    """How to reach Quantum. ``verify`` and ``cert`` as requests takes them; ``where`` chooses an endpoint of the
    catalogue, ``endpoint`` needs none. Shows no credentials."""

    plugin: Any = field(repr=False)
    verify: bool | str
    cert: Any = field(repr=False)
    where: Mapping[str, Any]
    endpoint: str | None
    connections: int


def read(global_conf: Mapping[str, str]) -> Connection:
    """The connection that the options describe. ConfigError names what is missing or wrong."""
    conf = config_files.load(global_conf, [*OPTS, *tls_options.OPTS])
    for group in GROUPS:
        grouped = config_files.load(global_conf, GROUP_OPTS, group)
        if grouped[group].auth_type or grouped[group].auth_section:
            return _by_plugin(grouped, group, conf.quantum_connections, conf.auth_ca_cert)
    return _as_in_grizzly(conf, config_files.files(global_conf))


def connect(connection: Connection) -> PortsApi:
    """Quantum's API over ``connection``; nothing is sent yet."""
    pooled = requests.Session()
    for scheme in ('http://', 'https://'):
        pooled.mount(scheme, BoundedAdapter(pool_maxsize=connection.connections))
    session = Session(
        connection.plugin, session=pooled, verify=connection.verify, cert=connection.cert, redirect=False,
        user_agent='metadata_wsgi',
    )  # fmt: skip
    access = Access(session, where=connection.where, endpoint=connection.endpoint)
    return PortsApi(session, access, connections=connection.connections)


def _by_plugin(conf: cfg.ConfigOpts, group: str, connections: int, ca_cert: str | None) -> Connection:
    # The plugin's options may be in a section of their own.
    loading.register_auth_conf_options(conf, group)
    section = conf[group].auth_section or group
    if not conf[section].auth_type:
        raise ConfigError(f'[{group}] auth_section = {section}: there is no auth_type in [{section}]')
    where = f'[{section}] auth_type = {conf[section].auth_type}'
    try:
        plugin = loading.load_auth_from_conf_options(conf, group)
    except exceptions.NoMatchingPlugin:
        known = ', '.join(sorted(loading.get_available_plugin_names()))
        raise ConfigError(f'{where}: there is no such plugin; choose one of {known}') from None
    except (exceptions.ClientException, cfg.Error, ValueError) as error:
        raise ConfigError(f'{where}: {" ".join(str(error).split())}') from error
    ours = conf[group]
    if ours.certfile and not ours.keyfile:
        raise ConfigError(f'[{group}] certfile = {ours.certfile}: keyfile is missing; name its private key')
    cert = (ours.certfile, ours.keyfile) if ours.certfile else None
    _readable({'cafile': ours.cafile, 'certfile': ours.certfile, 'keyfile': ours.keyfile}, f'[{group}]')
    selected = {
        'service_type': ours.service_type or 'network',
        'service_name': ours.service_name,
        'interface': ours.valid_interfaces or ([ours.interface] if ours.interface else ['internal', 'public']),
        'region_name': ours.region_name,
    }
    verify = False if ours.insecure else ours.cafile or ca_cert or True
    return Connection(plugin, verify, cert, selected, ours.endpoint_override, connections)


def _as_in_grizzly(conf: cfg.ConfigOpts, files: list[str]) -> Connection:
    needed = ('auth_url', 'admin_user', 'admin_password', 'admin_tenant_name')
    missing = [name for name in needed if not conf[name]]
    if missing:
        where = ', '.join(files) or 'no configuration file'
        raise ConfigError(
            f'{", ".join(missing)} missing from [DEFAULT] of {where}: directory = quantum needs credentials for '
            'Keystone, these or [quantum] auth_type'
        )
    _readable({'auth_ca_cert': conf.auth_ca_cert}, '[DEFAULT]')
    url = conf.auth_url.rstrip('/')
    if not url.startswith(('http://', 'https://')):
        raise ConfigError(f'auth_url = {conf.auth_url}: not a URL; write for example http://127.0.0.1:5000/v3')
    plugin = v3.Password(
        url.removesuffix('/v2.0').removesuffix('/v3') + '/v3',
        username=conf.admin_user, password=conf.admin_password, project_name=conf.admin_tenant_name,
        user_domain_id='default', project_domain_id='default',
    )  # fmt: skip
    where_ = {
        'service_type': 'network',
        'interface': conf.endpoint_type.removesuffix('URL'),
        'region_name': conf.auth_region,
    }
    verify = False if conf.auth_insecure else conf.auth_ca_cert or True
    return Connection(plugin, verify, None, where_, None, conf.quantum_connections)


def _readable(files: Mapping[str, str | None], where: str) -> None:
    for name, path in files.items():
        if path and not os.access(path, os.R_OK):
            raise ConfigError(f'{name} = {path} in {where}: there is no such file, or it cannot be read')
