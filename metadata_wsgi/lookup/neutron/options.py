# SPDX-License-Identifier: Apache-2.0
"""The options for Keystone and Neutron, and the keystoneauth session that they describe.

Grizzly's options name a user, a password and a project. Its ``auth_url`` often ends in ``/v2.0``, an API that
Keystone no longer has. The same credentials are then used with the v3 API, in the domain ``default``, where Keystone
put those users. All other methods of keystoneauth are configured in ``[neutron]`` (or ``[quantum]``).
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
from metadata_wsgi.lookup.neutron.auth import Authenticator
from metadata_wsgi.lookup.neutron.ports_api import PortsApi
from metadata_wsgi.lookup.neutron.transport import DeadlineAdapter

OPTS = [
    cfg.StrOpt('auth_url', help='URL of Keystone, for example http://127.0.0.1:5000/v3; with the options below.'),
    cfg.StrOpt('admin_user', help='User whose role may see the ports of every project (service or admin).'),
    cfg.StrOpt('admin_password', secret=True, help="That user's password."),
    cfg.StrOpt('admin_password_file', help='A file with the password, instead of the option above.'),
    cfg.StrOpt('admin_tenant_name', help='Project in which the user has that role.'),
    cfg.StrOpt('auth_region', help="Region of Neutron in Keystone's catalogue, by default the first one there."),
    cfg.StrOpt(
        'endpoint_type',
        default='adminURL',
        choices=['adminURL', 'internalURL', 'publicURL', 'admin', 'internal', 'public'],
        help="Which of Neutron's endpoints in the catalogue is used.",
    ),
    cfg.BoolOpt('auth_insecure', default=False, help='Accept any certificate of Keystone and Neutron. For tests.'),
    cfg.IntOpt(
        'neutron_connections',
        default=8,
        min=1,
        deprecated_name='quantum_connections',
        help='Concurrent queries to Neutron, of each worker.',
    ),
]

GROUPS = ('quantum', 'neutron')
GROUP_OPTS = [
    *loading.get_auth_common_conf_options(),
    *loading.get_session_conf_options(),
    *loading.get_adapter_conf_options(),
]
"""Options of ``[quantum]`` and ``[neutron]``; the plugin that ``auth_type`` names adds its own."""


@dataclass(frozen=True, slots=True)
class ConnectionSettings:
    """How to reach Keystone and Neutron. Its repr() has no credentials.

    ``verify`` and ``cert`` are requests' arguments. ``endpoint_filter`` selects an endpoint of the catalogue;
    ``endpoint`` replaces the catalogue. ``connections`` is the number of concurrent queries.
    """

    plugin: Any = field(repr=False)
    verify: bool | str
    cert: Any = field(repr=False)
    endpoint_filter: Mapping[str, Any]
    endpoint: str | None
    connections: int


def read(global_conf: Mapping[str, str]) -> ConnectionSettings:
    """Return the settings that the options describe. ConfigError names what is missing or wrong."""
    conf = config_files.load(global_conf, [*OPTS, *tls_options.OPTS])
    for group in GROUPS:
        group_conf = config_files.load(global_conf, GROUP_OPTS, group)
        if group_conf[group].auth_type or group_conf[group].auth_section:
            return _from_plugin(group_conf, group, conf.neutron_connections, conf.auth_ca_cert)
    return _from_legacy_options(conf, config_files.files(global_conf))


def make_ports_api(settings: ConnectionSettings) -> PortsApi:
    """Return the client for Neutron's API; it has sent nothing yet."""
    pool = requests.Session()
    for scheme in ('http://', 'https://'):
        pool.mount(scheme, DeadlineAdapter(pool_maxsize=settings.connections))
    session = Session(
        settings.plugin, session=pool, verify=settings.verify, cert=settings.cert, redirect=False,
        user_agent='metadata_wsgi',
    )  # fmt: skip
    auth = Authenticator(session, endpoint_filter=settings.endpoint_filter, endpoint=settings.endpoint)
    return PortsApi(session, auth, connections=settings.connections)


def _from_plugin(conf: cfg.ConfigOpts, group: str, connections: int, ca_cert: str | None) -> ConnectionSettings:
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
    values = conf[group]
    if values.certfile and not values.keyfile:
        raise ConfigError(f'[{group}] certfile = {values.certfile}: keyfile is missing; name its private key')
    cert = (values.certfile, values.keyfile) if values.certfile else None
    _check_readable({'cafile': values.cafile, 'certfile': values.certfile, 'keyfile': values.keyfile}, f'[{group}]')
    endpoint_filter = {
        'service_type': values.service_type or 'network',
        'service_name': values.service_name,
        'interface': values.valid_interfaces or ([values.interface] if values.interface else ['internal', 'public']),
        'region_name': values.region_name,
    }
    verify = False if values.insecure else values.cafile or ca_cert or True
    return ConnectionSettings(plugin, verify, cert, endpoint_filter, values.endpoint_override, connections)


def _from_legacy_options(conf: cfg.ConfigOpts, files: list[str]) -> ConnectionSettings:
    needed = ('auth_url', 'admin_user', 'admin_password', 'admin_tenant_name')
    missing = [name for name in needed if not conf[name]]
    if missing:
        where = ', '.join(files) or 'no configuration file'
        raise ConfigError(
            f'{", ".join(missing)} missing from [DEFAULT] of {where}: directory = neutron needs credentials for '
            'Keystone, these or [neutron] auth_type'
        )
    _check_readable({'auth_ca_cert': conf.auth_ca_cert}, '[DEFAULT]')
    url = conf.auth_url.rstrip('/')
    if not url.startswith(('http://', 'https://')):
        raise ConfigError(f'auth_url = {conf.auth_url}: not a URL; write for example http://127.0.0.1:5000/v3')
    plugin = v3.Password(
        url.removesuffix('/v2.0').removesuffix('/v3') + '/v3',
        username=conf.admin_user, password=conf.admin_password, project_name=conf.admin_tenant_name,
        user_domain_id='default', project_domain_id='default',
    )  # fmt: skip
    endpoint_filter = {
        'service_type': 'network',
        'interface': conf.endpoint_type.removesuffix('URL'),
        'region_name': conf.auth_region,
    }
    verify = False if conf.auth_insecure else conf.auth_ca_cert or True
    return ConnectionSettings(plugin, verify, None, endpoint_filter, None, conf.neutron_connections)


def _check_readable(files: Mapping[str, str | None], where: str) -> None:
    for name, path in files.items():
        if path and not os.access(path, os.R_OK):
            raise ConfigError(f'{name} = {path} in {where}: there is no such file, or it cannot be read')
