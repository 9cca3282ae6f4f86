# SPDX-License-Identifier: Apache-2.0
"""Checks that Nova's metadata API checks signatures, and that Nova has the same shared secret as the agent.

The check sends two requests to each host of Nova, with an instance id that no instance has. A request with a wrong
signature must get 403. A request with the right signature must get 404. If ``service_metadata_proxy`` is off (or
misspelt) in nova.conf, Nova ignores signatures, and every instance gets 404. If Nova has another secret, every instance
gets 403. Without this check an operator would notice these faults only when an instance boots.

``check-config`` and the check at the agent's start call::

    problems = probe.check(pipeline_app)    # sentences for the operator; empty if all is well

Nova logs a warning for the request with the wrong signature.
"""

from __future__ import annotations

from typing import Any

from metadata_wsgi import limits
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import NoResponse
from metadata_wsgi.http.client import HttpClient
from metadata_wsgi.http.message import Request
from metadata_wsgi.nova_proxy.upstream import UpstreamApp, identity_headers
from metadata_wsgi.pipeline import order
from metadata_wsgi.pipeline.environ_keys import Instance, SignedIdentity

NO_INSTANCE = Instance('00000000-0000-0000-0000-000000000000', 'metadata-wsgi-probe', '')
ADDRESS = '169.254.169.254'
TARGET = '/openstack/latest/meta_data.json'
"""The path of the requests. It is not / because Nova does not check the signature of a request for /."""

WRONG_SIGNATURE = '0' * 64


def check(app: Any, timeout_s: float = limits.NOVA_PROBE_TIMEOUT_S) -> list[str]:
    """The problems of Nova's hosts, a sentence for each. ``app`` is a loaded pipeline.

    The list is empty if there are no problems, or if the pipeline does not end with Nova (``upstream``). Waits at most
    ``timeout_s`` seconds for each host.
    """
    links = order.chain(app)
    signer = next((link for link in links if hasattr(link, 'signatures')), None)
    if signer is None or not isinstance(links[-1], UpstreamApp):
        return []
    identity = SignedIdentity(NO_INSTANCE, ADDRESS, signer.signatures(NO_INSTANCE.instance_id))
    found = (check_host(client, identity, timeout_s) for client in links[-1].clients)
    return [problem for problem in found if problem]


def check_host(client: HttpClient, identity: SignedIdentity, timeout_s: float = limits.NOVA_PROBE_TIMEOUT_S) -> str:
    """The problem of one host of Nova, as a sentence; '' if there is none. ``identity`` has the right signatures."""
    deadline = Deadline.after(timeout_s)
    nova = f'Nova at {client.name}'
    try:
        status = _status(client, identity, WRONG_SIGNATURE, deadline)
        if status != 403:
            return f'{nova} {_wrong_signature_problem(status)}'
        for signature in identity.signatures:
            status = _status(client, identity, signature, deadline)
            if status != 403:
                break
    except NoResponse as error:
        return f'Nova does not respond: {error}'
    if status == 403:
        return (
            f'{nova} rejects the signature: metadata_proxy_shared_secret here and [neutron] '
            f'metadata_proxy_shared_secret in nova.conf differ; every instance gets 403'
        )
    if status != 404:
        return f'{nova} responds {status} instead of 404 to a signed request for an instance that does not exist'
    return ''


def _wrong_signature_problem(status: int) -> str:
    if status >= 500:
        return f'fails: it responds {status}'
    return (
        f'does not check signatures: it responds {status} instead of 403 to a wrong signature. '
        f'Set [neutron] service_metadata_proxy = true in nova.conf; until then no instance gets its metadata'
    )


def _status(client: HttpClient, identity: SignedIdentity, signature: str, deadline: Deadline) -> int:
    request = Request('GET', TARGET, [('accept', '*/*'), *identity_headers(identity, signature)])
    response = client.send_request(request, deadline)
    if hasattr(response.body, 'close'):
        response.body.close()
    return response.status
