# SPDX-License-Identifier: Apache-2.0
"""Services become unavailable and available again, tokens expire: guests get 503 or a late response, never a wrong one.

The agent is not restarted.
"""

import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import requests

from tests.openstack.seed import Admin

pytestmark = [pytest.mark.openstack, pytest.mark.netns]

META_DATA = '/openstack/latest/meta_data.json'
STARTS = 12


@pytest.fixture
def stop_service(services):
    """Stops a service; after the test all services are started again."""
    yield services.stop
    services.start()


@pytest.fixture
def short_tokens(services):
    """Keystone issues tokens with a lifetime of 12 s."""
    services.stop('keystone')
    services.configure(token_lasts_s=12)
    services.start('keystone')
    yield
    services.stop('keystone')
    services.configure()
    services.start('keystone')


def wait_for(condition, what, timeout_s=120.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f'{what} did not happen'
        time.sleep(0.05)


def tokens_issued(services):
    """The number of token requests of agents."""
    return sum('POST /v3/auth/tokens' in line for line in services.requests_from('metadata_wsgi', 'keystone'))


def has_unread_bytes(port):
    """Whether a connection to that port has received bytes that the service has not read."""
    listed = subprocess.run(['ss', '-Htn', f'sport = :{port}'], capture_output=True, text=True, check=True).stdout
    return any(int(line.split()[1]) for line in listed.splitlines())


def is_503_with_retry_after(response):
    return (response.status, response.headers.get('retry-after')) == (503, '1')


def wait_until_recovered(host):
    """Wait until both guests get 200; until then they may only get 503 with Retry-After.

    A service that has just started may need longer for its first response than the deadline.
    """

    def served():
        responses = [host.curl(name, META_DATA) for name in ('a', 'b')]
        assert all(response.status == 200 or is_503_with_retry_after(response) for response in responses), responses
        return [response.status for response in responses] == [200, 200]

    wait_for(served, 'a response of 200')


def test_keystone_unavailable_at_the_start_of_the_agent(host, services, stop_service):
    """Without a token guests get 503; when Keystone is available again, no restart is needed."""
    host.restart_agent(host.grizzly_configuration(request_timeout=5))
    wait_until_recovered(host)  # and both guests are attached
    stop_service('keystone')
    host.restart_agent(host.grizzly_configuration(request_timeout=5))
    assert is_503_with_retry_after(host.curl('a', META_DATA))
    services.start('keystone')
    wait_until_recovered(host)


@pytest.mark.parametrize('name', ['neutron', 'nova'])
def test_unavailable_service_gives_503_until_it_is_available(host, services, stop_service, name):
    """The agent has a token and idle keep-alive connections, which no longer work."""
    host.restart_agent(host.grizzly_configuration(request_timeout=5))
    wait_until_recovered(host)
    stop_service(name)
    assert is_503_with_retry_after(host.curl('a', META_DATA))
    services.start(name)
    wait_until_recovered(host)


def test_starting_neutron_under_load_never_gives_404(host, services, stop_service):
    """Neutron accepts requests before it has registered its policy rules. Until then its lists of ports are shortened.

    The long lists of other clients are counted: at least one of them must be shortened.
    """
    host.restart_agent(host.grizzly_configuration(request_timeout=5))
    wait_until_recovered(host)
    admin = Admin(services)
    expected = len(admin.neutron('GET', 'ports')['ports'])
    shortened = []

    def list_until_complete():
        while True:
            with suppress(requests.RequestException, RuntimeError):
                shortened.append(len(admin.neutron('GET', 'ports?fields=id')['ports']) < expected)
                if not shortened[-1]:
                    return
            time.sleep(0.02)

    def boot(name):
        responses = [host.curl(name, META_DATA)]
        while responses[-1].status == 503:
            responses.append(host.curl(name, META_DATA))
        return responses

    try:
        for _ in range(STARTS):
            stop_service('neutron')
            with ThreadPoolExecutor(12) as pool:
                others = [pool.submit(list_until_complete) for _ in range(6)]
                pending = [pool.submit(boot, name) for name in ('a', 'b') * 3]
                services.start('neutron')
                responses = [response for one in pending for response in one.result()]
                for other in others:
                    other.result()
            assert all(response.status == 200 or is_503_with_retry_after(response) for response in responses), responses
            if any(shortened):
                return
    finally:
        admin.close()
    pytest.fail(f'Neutron shortened no list in {STARTS} starts, so this test has shown nothing')


@pytest.mark.parametrize('name', ['keystone', 'neutron', 'nova'])
def test_service_that_resumes_before_the_deadline_gives_200(host, services, name):
    """The paused service accepts the connection; the guest's request waits until it resumes.

    Without the check at start, the service has received no request when it is paused: it would not respond to one.
    """
    host.configure(host.grizzly_configuration())
    host.guest('a')  # attached before the pause: this needs Neutron
    host.restart_agent(host.grizzly_configuration(check_services_at_start=False))
    services.pause(name)
    try:
        with ThreadPoolExecutor() as pool:
            pending = pool.submit(host.curl, 'a', META_DATA)
            wait_for(lambda: has_unread_bytes(services.port(name)), f'a request to {name}')
            services.resume(name)
            assert pending.result().status == 200
    finally:
        services.resume(name)


def test_rejected_token_is_renewed_once_for_all_requests(host, services):
    """A password change revokes a user's tokens. The new password equals the old one, so the next token is valid."""
    host.restart_agent(host.grizzly_configuration('metadata'))
    wait_until_recovered(host)
    issued, seen = tokens_issued(services), len(services.requests_from('metadata_wsgi', 'neutron'))
    admin = Admin(services)
    user = admin.keystone('GET', 'users?name=metadata')['users'][0]['id']
    admin.keystone('PATCH', f'users/{user}', {'user': {'password': 'password of metadata'}})
    admin.close()
    # Keystone stores the revocation time in seconds: a token issued in the same second is revoked too.
    wait_for(lambda: new_token_works(services), 'a valid token')
    with ThreadPoolExecutor(4) as pool:
        responses = list(pool.map(lambda name: host.curl(name, META_DATA), ['a', 'b'] * 2))
    # Neutron validates the token of each request at Keystone, which may take too long on a busy machine.
    assert all(response.status == 200 or is_503_with_retry_after(response) for response in responses), responses
    wait_until_recovered(host)
    refused = [line for line in services.requests_from('metadata_wsgi', 'neutron')[seen:] if '" 401 ' in line]
    assert refused
    assert tokens_issued(services) == issued + 1


def new_token_works(services):
    user = Admin(services, 'metadata', 'password of metadata', 'service')
    try:
        return bool(user.neutron('GET', 'networks?limit=1&fields=id'))
    except RuntimeError:
        return False
    finally:
        user.close()


@pytest.mark.usefixtures('short_tokens')
def test_expiring_token_is_renewed_before_a_request_fails(host, services):
    host.restart_agent(host.grizzly_configuration())
    issued = tokens_issued(services)
    while tokens_issued(services) < issued + 3:
        assert host.curl_until_served('a', META_DATA).status == 200
