# SPDX-License-Identifier: Apache-2.0
"""Answer a guest from the inventory as Nova's metadata API would. Ends a pipeline.

It stands on a port of its own, where the agent's ``upstream`` finds it in Nova's place, or ends the agent's own
pipeline behind ``signature``: either way it believes only the three signed headers. Every method reads,
as in Nova; only the password may be written, once.
"""

from __future__ import annotations

import logging
import os
import posixpath
import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import webob
import webob.exc
from oslo_config import cfg

from metadata_wsgi.config import config_files
from metadata_wsgi.errors import ConfigError
from metadata_wsgi.http import error_responses
from metadata_wsgi.inventory import Instance, Inventory, WatchedInventory
from metadata_wsgi.metadata_service import ec2, openstack
from metadata_wsgi.metadata_service.authentication import authenticate
from metadata_wsgi.metadata_service.password import MAX_BYTES, Passwords

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

LOG = logging.getLogger(__name__)

GROUP = 'metadata_app'
OPTS = [
    cfg.StrOpt(
        'inventory',
        help='YAML file of instances; inventory.sample.yaml shows every key. Not set: the value of [static] inventory.',
    ),
    cfg.StrOpt(
        'password_dir',
        default='/var/lib/metadata_wsgi/passwords',
        help='Directory for the passwords that guests post, one file each; made if it is not there.',
    ),
]
# The static directory's, read where inventory above is not set.
SHARED_OPTS = [
    cfg.StrOpt('inventory', required=True, help='YAML file of instances; or set inventory in [metadata_app].'),
]
# The signature filter's too, which signs with what is compared here.
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

    def __init__(self, *, shared_secret: bytes, current: Callable[[], Inventory], passwords: Passwords) -> None:
        self._shared_secret = shared_secret
        self._current = current
        self._passwords = passwords

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        try:
            return self._answer(environ)(environ, start_response)
        except webob.exc.HTTPException as refusal:
            return refusal(environ, start_response)
        except OSError as error:
            LOG.error('A password cannot be read or kept: %s; see password_dir in [%s]', error, GROUP)
            return error_responses.unavailable()(environ, start_response)

    def _answer(self, environ: WSGIEnvironment) -> webob.Response:
        tokens = split(environ.get('PATH_INFO', ''))
        if not tokens:
            return _response(ec2.versions(), openstack.TEXT)
        instance = self._instance(environ)
        if tokens[0] != 'openstack':
            # /ec2/latest is another name of /latest there.
            return _response(ec2.find(instance, tokens[1:] if tokens[0] == 'ec2' else tokens), openstack.TEXT)
        if openstack.has_password(tokens[1:]):
            return self._password(instance, environ)
        body, content_type = openstack.find(instance, tokens[1:]) or (None, '')
        return _response(body, content_type)

    def _instance(self, environ: WSGIEnvironment) -> Instance:
        instance_id, tenant_id = authenticate(environ, self._shared_secret)
        instance = self._current().instances.get(instance_id)
        # Not to be told apart: whether an id exists is nobody's business who has it not.
        if instance is None or instance.project_id != tenant_id:
            raise webob.exc.HTTPNotFound()
        return instance

    def _password(self, instance: Instance, environ: WSGIEnvironment) -> webob.Response:
        match environ['REQUEST_METHOD']:
            case 'GET' | 'HEAD':
                return _response(self._passwords.get(instance.id), 'text/html')
            case 'POST':
                # The one that is set is looked at first, as in Nova: 409 whatever the body is.
                if self._passwords.get(instance.id) or not self._passwords.set_once(instance.id, _body(environ)):
                    raise webob.exc.HTTPConflict()
                return _response(b'', 'text/html')
        raise webob.exc.HTTPBadRequest(explanation='GET and POST only are supported.')


def split(path: str) -> list[str]:
    """The parts of a path as Nova counts them: ``//``, ``.``, ``..`` and a slash at the end are gone."""
    tokens = posixpath.normpath('/' + path.lstrip('/')).split('/')[1:]
    return tokens if tokens != [''] else []


def _body(environ: WSGIEnvironment) -> bytes:
    """The whole body; raises HTTPBadRequest for more than a password, or less than was announced."""
    length = environ.get('CONTENT_LENGTH') or ''
    if length and not (length.isascii() and length.isdecimal()):
        raise webob.exc.HTTPBadRequest(explanation='Content-Length is no number.')
    # Without a length the body is chunked, and ends where the server says so, or there is none.
    wanted = int(length[:9]) if length else (MAX_BYTES + 1 if environ.get('wsgi.input_terminated') else 0)
    body: bytes = environ['wsgi.input'].read(min(wanted, MAX_BYTES + 1))
    if len(body) > MAX_BYTES:
        raise webob.exc.HTTPBadRequest(explanation='Request is too large.')
    if length and len(body) < wanted:
        raise webob.exc.HTTPBadRequest(explanation='The body is shorter than its Content-Length.')
    return body


def _response(body: bytes | None, content_type: str) -> webob.Response:
    if body is None:
        raise webob.exc.HTTPNotFound()
    charset = None if content_type == openstack.JSON else 'UTF-8'
    return webob.Response(body=body, content_type=content_type, charset=charset)


def app_factory(global_conf: Mapping[str, str]) -> MetadataApp:
    """For ``use = egg:metadata_wsgi#metadata``. Makes the directory for the passwords."""
    secret = config_files.load(global_conf, SECRET_OPTS).metadata_proxy_shared_secret
    conf = config_files.load(global_conf, OPTS, GROUP).metadata_app
    path = conf.inventory or config_files.load(global_conf, SHARED_OPTS, 'static').static.inventory
    inventory = WatchedInventory(path)
    _make(conf.password_dir)
    return MetadataApp(shared_secret=secret.encode(), current=inventory.current, passwords=Passwords(conf.password_dir))


def _make(directory: str) -> None:
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        reason = f'{error.strerror}; name a directory that we may make and write to'
        raise ConfigError(f'password_dir = {directory}: {reason}') from error
