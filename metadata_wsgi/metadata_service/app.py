# SPDX-License-Identifier: Apache-2.0
"""The WSGI app: Nova's metadata API, with data from the inventory. It is the last part of a pipeline.

The app may run on its own port. Then the agent's ``upstream`` sends requests to it instead of Nova. Or the app is in
the agent's own pipeline, after ``signature``. In both cases it trusts only the signed identity. As in Nova, a
request with any method reads the path. Only the password differs: POST writes it, once; GET and HEAD read it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import posixpath
import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import webob
import webob.exc
from oslo_config import cfg

from metadata_wsgi import limits, safe_files
from metadata_wsgi.config import config_files
from metadata_wsgi.errors import ConfigError
from metadata_wsgi.http import error_responses
from metadata_wsgi.inventory import Instance, Inventory, ReloadingInventory
from metadata_wsgi.metadata_service import ec2, openstack
from metadata_wsgi.metadata_service.authentication import authenticate
from metadata_wsgi.metadata_service.password import MAX_BYTES, Passwords
from metadata_wsgi.pipeline import paste_loader
from metadata_wsgi.privileges import identity
from metadata_wsgi.privileges import options as privileges_options
from metadata_wsgi.throttle import Throttle

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

LOG = logging.getLogger(__name__)

GROUP = 'metadata_app'
OPTS = [
    cfg.StrOpt(
        'inventory',
        help='YAML file with instances; inventory.sample.yaml shows every key. Default: the value of [static] '
        'inventory.',
    ),
    cfg.StrOpt(
        'password_dir',
        default='/var/lib/metadata_wsgi/passwords',
        help='Directory for the passwords that instances post, one file for each. It is created if it does not exist.',
    ),
]
# The option of the lookup static. It is used if [metadata_app] inventory is not set.
SHARED_OPTS = [
    cfg.StrOpt('inventory', required=True, help='YAML file with instances; or set inventory in [metadata_app].'),
]
# The same options as in the filter signature, which signs with this secret.
SECRET_OPTS = [
    cfg.StrOpt('metadata_proxy_shared_secret_file', help='A file with the secret.'),
    cfg.StrOpt(
        'metadata_proxy_shared_secret',
        secret=True,
        required=True,
        help='Secret shared with Nova: the value of [neutron] metadata_proxy_shared_secret in nova.conf.',
    ),
]


class MetadataApp:
    """The metadata API of the instances in an inventory."""

    REQUIRES: frozenset[str] = frozenset()
    PROVIDES: frozenset[str] = frozenset()

    def __init__(
        self,
        *,
        shared_secret: bytes,
        current: Callable[[], Inventory],
        passwords: Passwords,
        is_reloading: Callable[[], bool] = lambda: False,
    ) -> None:
        self._shared_secret = shared_secret
        self._current = current
        self._is_reloading = is_reloading
        self._passwords = passwords
        self._password_log = Throttle(limits.LOG_INTERVAL_S)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """WSGI application."""
        try:
            return self._respond(environ)(environ, start_response)
        except webob.exc.HTTPException as response:
            return response(environ, start_response)
        except OSError as error:
            if self._password_log.allow():
                LOG.error('A password cannot be read or stored: %s; see password_dir in [%s]', error, GROUP)
            return error_responses.unavailable()(environ, start_response)

    def _respond(self, environ: WSGIEnvironment) -> webob.Response:
        tokens = split(environ.get('PATH_INFO', ''))
        if not tokens:
            return _response(ec2.versions(), openstack.TEXT)
        instance = self._instance(environ)
        if tokens[0] != 'openstack':
            # In Nova /ec2/latest is the same as /latest.
            return _response(ec2.find(instance, tokens[1:] if tokens[0] == 'ec2' else tokens), openstack.TEXT)
        if openstack.has_password(tokens[1:]):
            return self._password(instance, environ)
        body, content_type = openstack.find(instance, tokens[1:]) or (None, '')
        return _response(body, content_type)

    def _instance(self, environ: WSGIEnvironment) -> Instance:
        instance_id, tenant_id = authenticate(environ, self._shared_secret)
        instance = self._current().instances.get(instance_id)
        if instance is None and self._is_reloading():
            raise webob.exc.HTTPServiceUnavailable(headers=[('Retry-After', '1')])
        # The same response in both cases, so that another project cannot find out whether an id exists.
        if instance is None or instance.project_id != tenant_id:
            raise webob.exc.HTTPNotFound()
        return instance

    def _password(self, instance: Instance, environ: WSGIEnvironment) -> webob.Response:
        match environ['REQUEST_METHOD']:
            case 'GET' | 'HEAD':
                return _response(self._passwords.get(instance.id), 'text/html')
            case 'POST':
                # As in Nova: 409 if a password is already set, for any body.
                if self._passwords.get(instance.id) or not self._passwords.set_once(instance.id, _body(environ)):
                    raise webob.exc.HTTPConflict()
                return _response(b'', 'text/html')
        raise webob.exc.HTTPBadRequest(explanation='GET and POST only are supported.')


def split(path: str) -> list[str]:
    """The segments of a path, as in Nova: without ``//``, ``.``, ``..`` and a slash at the end."""
    tokens = posixpath.normpath('/' + path.lstrip('/')).split('/')[1:]
    return tokens if tokens != [''] else []


def _body(environ: WSGIEnvironment) -> bytes:
    """The whole body. Raises HTTPRequestTimeout if it does not arrive in time.

    Raises HTTPBadRequest if it is larger than a password, or shorter than its Content-Length.
    """
    length = environ.get('CONTENT_LENGTH') or ''
    if length and not (length.isascii() and length.isdecimal()):
        raise webob.exc.HTTPBadRequest(explanation='Content-Length is not a number.')
    # Without a length there is either no body, or a chunked body, which the server ends.
    # int() accepts at most 4,300 digits. Nine digits are enough here: every longer number is above MAX_BYTES.
    length = length and (length.lstrip('0')[:9] or '0')
    expected = int(length) if length else (MAX_BYTES + 1 if environ.get('wsgi.input_terminated') else 0)
    try:
        body: bytes = environ['wsgi.input'].read(min(expected, MAX_BYTES + 1))
    except TimeoutError:
        raise webob.exc.HTTPRequestTimeout() from None
    except OSError:
        raise webob.exc.HTTPBadRequest(explanation='The connection failed within the body.') from None
    if len(body) > MAX_BYTES:
        raise webob.exc.HTTPBadRequest(explanation='Request is too large.')
    if length and len(body) < expected:
        raise webob.exc.HTTPBadRequest(explanation='The body is shorter than its Content-Length.')
    return body


def _response(body: bytes | None, content_type: str) -> webob.Response:
    if body is None:
        raise webob.exc.HTTPNotFound()
    charset = None if content_type == openstack.JSON else 'UTF-8'
    return webob.Response(body=body, content_type=content_type, charset=charset)


def app_factory(global_conf: Mapping[str, str]) -> MetadataApp:
    """For ``use = egg:metadata_wsgi#metadata``. Creates the directory for the passwords."""
    secret = config_files.load(global_conf, SECRET_OPTS).metadata_proxy_shared_secret
    conf = config_files.load(global_conf, OPTS, GROUP).metadata_app
    path = conf.inventory or config_files.load(global_conf, SHARED_OPTS, 'static').static.inventory
    inventory = ReloadingInventory(path)
    if paste_loader.ONLY_CHECK not in global_conf:
        _create(conf.password_dir, _workers(global_conf))
    return MetadataApp(
        shared_secret=secret.encode(),
        current=inventory.current,
        passwords=Passwords(conf.password_dir),
        is_reloading=inventory.is_reloading,
    )


def _workers(global_conf: Mapping[str, str]) -> identity.Identity | None:
    """The identity to which this process switches after it has loaded the app; None if it keeps its user."""
    if not config_files.is_parsed_once():
        return None  # another server, for example gunicorn, has its own options for the user
    conf = config_files.load(global_conf, privileges_options.OPTS)
    return identity.resolve_workers(conf.metadata_user, conf.metadata_group)


def _create(directory: str, workers: identity.Identity | None) -> None:
    try:
        if workers:
            _create_for(workers, directory)
        else:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory):
                pass
    except OSError as error:
        reason = f'{error.strerror}; name a directory that the user of the workers may create and write to'
        raise ConfigError(f'password_dir = {directory}: {reason}') from error


def _create_for(workers: identity.Identity, directory: str) -> None:
    """As root: create the directory, and give it to the workers. Follows no link that another user made."""
    above, name = os.path.split(os.path.abspath(directory))
    dir_fd = safe_files.open_directory(above, make=True)
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=dir_fd)
    finally:
        os.close(dir_fd)
    path_fd = safe_files.open_directory(directory)
    try:
        # The descriptor of open_directory is only a path: fchown needs an open directory.
        fd = os.open('.', os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=path_fd)
        try:
            uid = os.fstat(fd).st_uid
            if uid == 0:
                os.fchown(fd, workers.uid, workers.gid)
            elif uid != workers.uid:
                reason = f'it belongs to uid {uid}, and not to the workers, uid {workers.uid}'
                raise PermissionError(errno.EPERM, reason)
        finally:
            os.close(fd)
    finally:
        os.close(path_fd)
