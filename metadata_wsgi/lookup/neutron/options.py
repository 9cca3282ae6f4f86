# SPDX-License-Identifier: Apache-2.0
"""The options for Keystone and Neutron, and the keystoneauth session that they configure.

The agent uses the first credentials in this list that are set:

1. ``auth_type`` (or ``auth_section``) in ``[quantum]`` or ``[neutron]``: any plugin of keystoneauth.
2. ``admin_user``, ``admin_password`` and ``admin_tenant_name`` in ``[DEFAULT]``, the names from Grizzly to Juno. Their
   ``auth_url`` often ends in ``/v2.0``, an API that Keystone no longer has. These credentials are always used with the
   v3 API, in the domain ``default``, to which Keystone has migrated these users.
3. ``auth_plugin`` (or ``auth_type``) in ``[DEFAULT]``, with ``username`` and so on: the names from Kilo to Mitaka.
4. ``auth_type`` in ``[keystone_authtoken]``: the user of Neutron itself, from ``neutron.conf``.

``metadata-wsgi check-config`` prints which credentials are used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from keystoneauth1 import exceptions, loading
from keystoneauth1.identity import v3
from oslo_config import cfg

from metadata_wsgi.config import config_files, tls_options
from metadata_wsgi.errors import ConfigError
from metadata_wsgi.lookup.neutron.auth import Authenticator, EndpointFilter, KeystoneSession
from metadata_wsgi.lookup.neutron.ports_api import PortsApi
from metadata_wsgi.lookup.neutron.transport import machine_ca_store, make_session

OPTS = [
    cfg.StrOpt('auth_url', help='URL of Keystone for admin_user, for example http://127.0.0.1:5000/v3.'),
    cfg.StrOpt('admin_user', help='User with a role that may see the ports of every project (service or admin).'),
    cfg.StrOpt('admin_password', secret=True, help='Password of admin_user.'),
    cfg.StrOpt('admin_password_file', help='A file with the password, instead of admin_password.'),
    cfg.StrOpt('admin_tenant_name', help='Project in which admin_user has the role service or admin.'),
    cfg.StrOpt(
        'auth_region',
        help="Region of Neutron in Keystone's catalogue. Must be set if the catalogue has Neutron in several regions.",
    ),
    cfg.StrOpt(
        'endpoint_type',
        choices=['adminURL', 'internalURL', 'publicURL', 'admin', 'internal', 'public'],
        help="Which of Neutron's endpoints in the catalogue is used. Default: admin, else internal, else public. If "
        'the credentials are in another section than [DEFAULT], the default is internal, else public, else admin.',
    ),
    cfg.BoolOpt('auth_insecure', default=False, help='Accept any certificate of Keystone and Neutron. For tests.'),
    cfg.IntOpt(
        'neutron_connections',
        default=8,
        min=1,
        deprecated_name='quantum_connections',
        help='Largest number of concurrent queries of a worker to Neutron.',
    ),
]

GROUPS = ('quantum', 'neutron')
GROUP_OPTS = [
    *loading.get_auth_common_conf_options(),
    *loading.get_session_conf_options(),
    *loading.get_adapter_conf_options(),
]
"""Options of ``[quantum]`` and ``[neutron]``. The plugin of ``auth_type`` adds its own options."""
NEUTRON_SERVER_GROUP = 'keystone_authtoken'
"""The section of ``neutron.conf`` with the credentials of Neutron itself."""

LEGACY_OPTIONS = ('admin_user', 'admin_password', 'admin_tenant_name')
LEGACY_INTERFACES = ('admin', 'internal', 'public')
INTERFACES = ('internal', 'public', 'admin')


@dataclass(frozen=True, slots=True)
class ConnectionSettings:
    """The settings for Keystone and Neutron. repr() shows no credentials.

    ``verify`` and ``cert`` are arguments of the library ``requests``. ``endpoint_filter`` selects an endpoint of the
    catalogue. If ``endpoint`` is set, the catalogue is not used. ``connections`` is the largest number of concurrent
    queries. ``credentials`` is a text for the operator without secrets: the user, and the option that selects the user.
    """

    plugin: Any = field(repr=False)
    verify: bool | str
    cert: Any = field(repr=False)
    endpoint_filter: EndpointFilter
    endpoint: str | None
    connections: int
    credentials: str


def read(global_conf: Mapping[str, str]) -> ConnectionSettings:
    """Return the configured settings. Raises ConfigError if an option is missing or wrong."""
    conf = config_files.load(global_conf, [*OPTS, *tls_options.OPTS])
    for group in GROUPS:
        group_conf = config_files.load_group(global_conf, GROUP_OPTS, group)
        if group_conf[group].auth_type or group_conf[group].auth_section:
            return _from_section(conf, group_conf, group)
    if not any(conf[name] for name in LEGACY_OPTIONS):
        for group in ('DEFAULT', NEUTRON_SERVER_GROUP):
            group_conf = config_files.load_group(global_conf, GROUP_OPTS, group)
            if group_conf[group].auth_type:
                return _from_section(conf, group_conf, group)
    return _from_legacy_options(conf, config_files.files(global_conf))


def make_ports_api(settings: ConnectionSettings) -> PortsApi:
    """Return the client for Neutron's API. Sends no request."""
    session = KeystoneSession(
        settings.plugin, session=make_session(settings.connections), verify=settings.verify, cert=settings.cert,
        redirect=False, user_agent='metadata_wsgi',
    )  # fmt: skip
    auth = Authenticator(session, endpoint_filter=settings.endpoint_filter, endpoint=settings.endpoint)
    return PortsApi(session, auth, connections=settings.connections)


def _from_section(conf: cfg.ConfigOpts, group_conf: cfg.ConfigOpts, group: str) -> ConnectionSettings:
    """The settings for the plugin that ``[group]`` in ``group_conf`` names. ``conf`` has the options of [DEFAULT]."""
    # The plugin's options may be in another section (auth_section).
    loading.register_auth_conf_options(group_conf, group)
    section = group_conf[group].auth_section or group
    if not group_conf[section].auth_type:
        raise ConfigError(f'[{group}] auth_section = {section}: there is no auth_type in [{section}]')
    plugin = _load_plugin(group_conf, group, section)
    values = group_conf[group]
    if values.certfile and not values.keyfile:
        raise ConfigError(f'[{group}] certfile = {values.certfile}: keyfile is missing; name its private key')
    cert = (values.certfile, values.keyfile) if values.certfile else None
    _check_readable({'cafile': values.cafile, 'certfile': values.certfile, 'keyfile': values.keyfile}, f'[{group}]')
    insecure = values.insecure or (conf.auth_insecure and group == 'DEFAULT')
    return ConnectionSettings(
        plugin,
        False if insecure else values.cafile or _ca_certificates(conf),
        cert,
        _endpoint_filter(conf, values, group),
        values.endpoint_override,
        conf.neutron_connections,
        _credentials_text(group_conf, section),
    )


def _load_plugin(conf: cfg.ConfigOpts, group: str, section: str) -> Any:
    where = f'[{section}] auth_type = {conf[section].auth_type}'
    try:
        plugin = loading.load_auth_from_conf_options(conf, group)
    except exceptions.NoMatchingPlugin:
        known = ', '.join(sorted(loading.get_available_plugin_names()))
        raise ConfigError(f'{where}: there is no such plugin; choose one of {known}') from None
    except (exceptions.ClientException, cfg.Error, ValueError) as error:
        raise ConfigError(f'{where}: {" ".join(str(error).split())}') from error
    for opt in loading.get_auth_plugin_conf_options(conf[section].auth_type):
        value = conf[section][opt.dest]
        if not opt.secret:
            config_files.check_comment(opt.dest, value, f'[{section}]')
        if opt.dest == 'auth_url':
            _check_url('auth_url', value, f'[{section}]')
    return plugin


def _endpoint_filter(conf: cfg.ConfigOpts, values: Any, group: str) -> EndpointFilter:
    if group in GROUPS:
        interfaces = values.valid_interfaces or [values.interface]
        region_name, region_option = values.region_name or conf.auth_region, f'[{group}] region_name'
        option_names = (region_option, f'[{group}] valid_interfaces')
        service_type, service_name = values.service_type or 'network', values.service_name
    else:
        # Interface and service_type of this section are for Neutron's own requests to Keystone, so they are not used.
        interfaces, service_type, service_name = [], 'network', None
        region_name, option_names = conf.auth_region or values.region_name, ('auth_region', 'endpoint_type')
    interfaces = [name.removesuffix('URL') for name in interfaces if name]
    if not interfaces and conf.endpoint_type:
        interfaces = [conf.endpoint_type.removesuffix('URL')]
    if not interfaces:
        interfaces = list(LEGACY_INTERFACES if group == 'DEFAULT' else INTERFACES)
    return EndpointFilter(tuple(interfaces), region_name, service_type, service_name, option_names)


def _from_legacy_options(conf: cfg.ConfigOpts, files: list[str]) -> ConnectionSettings:
    missing = [name for name in ('auth_url', *LEGACY_OPTIONS) if not conf[name]]
    if missing:
        where = ', '.join(files) or 'no configuration file'
        raise ConfigError(
            f'{", ".join(missing)} missing from [DEFAULT] of {where}: directory = neutron needs credentials for '
            f'Keystone, these or auth_type in [neutron] or in [{NEUTRON_SERVER_GROUP}] of neutron.conf'
        )
    _check_readable({'auth_ca_cert': conf.auth_ca_cert}, '[DEFAULT]')
    _check_url('auth_url', conf.auth_url, '[DEFAULT]')
    plugin = v3.Password(
        conf.auth_url.rstrip('/').removesuffix('/v2.0').removesuffix('/v3') + '/v3',
        username=conf.admin_user, password=conf.admin_password, project_name=conf.admin_tenant_name,
        user_domain_id='default', project_domain_id='default',
    )  # fmt: skip
    interfaces = (conf.endpoint_type.removesuffix('URL'),) if conf.endpoint_type else LEGACY_INTERFACES
    return ConnectionSettings(
        plugin,
        False if conf.auth_insecure else _ca_certificates(conf),
        None,
        EndpointFilter(interfaces, conf.auth_region),
        None,
        conf.neutron_connections,
        f'user {conf.admin_user} of project {conf.admin_tenant_name}, from admin_user in [DEFAULT]'
        + _file_of(conf, 'admin_user', None),
    )


def _ca_certificates(conf: cfg.ConfigOpts) -> str:
    _check_readable({'auth_ca_cert': conf.auth_ca_cert}, '[DEFAULT]')
    path: str = conf.auth_ca_cert or machine_ca_store()
    return path


def _credentials_text(conf: cfg.ConfigOpts, section: str) -> str:
    values = conf[section]
    names = {opt.dest for opt in loading.get_auth_plugin_conf_options(values.auth_type)}

    def value(*options: str) -> str:
        return next((str(values[name]) for name in options if name in names and values[name]), '')

    user = value('username', 'user_id', 'application_credential_name', 'application_credential_id')
    project = value('project_name', 'project_id', 'tenant_name', 'tenant_id')
    text = (f'user {user}' if user else 'no user') + (f' of project {project}' if project else '')
    return f'{text}, from auth_type = {values.auth_type} in [{section}]{_file_of(conf, "auth_type", section)}'


def _file_of(conf: cfg.ConfigOpts, name: str, group: str | None) -> str:
    detail = conf.get_location(name, group).detail
    return f' of {detail}' if detail else ''


def _check_url(name: str, value: str | None, where: str) -> None:
    if value and not re.fullmatch(r'https?://[!-~]+', value):
        raise ConfigError(f'{name} = {value!r} in {where}: not a URL; write for example http://127.0.0.1:5000/v3')


def _check_readable(files: Mapping[str, str | None], where: str) -> None:
    for name, path in files.items():
        if path and not os.access(path, os.R_OK):
            raise ConfigError(f'{name} = {path} in {where}: there is no such file, or it cannot be read')
