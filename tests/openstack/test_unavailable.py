# SPDX-License-Identifier: Apache-2.0
"""Unavailable services and expired tokens: requests are answered late rather than wrong, and no agent restarts."""

import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.openstack.seed import Admin

pytestmark = [pytest.mark.openstack, pytest.mark.netns]

META_DATA = '/openstack/latest/meta_data.json'


@pytest.fixture
def stop_service(services):
    """A function that stops a service; all services run again afterwards."""
    yield services.stop
    services.start()


@pytest.fixture
def short_tokens(services):
    """Keystone issues tokens that are valid for 12 s."""
    services.stop('keystone')
    services.configure(token_lasts_s=12)
    services.start('keystone')
    yield
    services.stop('keystone')
    services.configure()
    services.start('keystone')


def wait_until(true, what, patience_s=120.0):
    give_up_at = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < give_up_at, f'{what} did not happen'
        time.sleep(0.05)


def tokens_issued(services):
    """The number of tokens that agents have requested."""
    return sum('POST /v3/auth/tokens' in line for line in services.requests_from('metadata_wsgi', 'keystone'))


def has_unread_bytes(port):
    """Whether a connection to that port has received bytes that are not read yet."""
    listed = subprocess.run(['ss', '-Htn', f'sport = :{port}'], capture_output=True, text=True, check=True).stdout
    return any(int(line.split()[1]) for line in listed.splitlines())


def is_unavailable(answer):
    return (answer.status, answer.headers.get('retry-after')) == (503, '1')


def recovers(host):
    """Wait until both instances get 200; until then each response must be 503 with Retry-After.

    What was just started may need longer for its first answer than a guest waits.
    """

    def served():
        answers = [host.curl(name, META_DATA) for name in ('a', 'b')]
        assert all(answer.status == 200 or is_unavailable(answer) for answer in answers), answers
        return [answer.status for answer in answers] == [200, 200]

    wait_until(served, 'an answer')


def test_an_unavailable_keystone_at_start_is_503_until_it_is_back(host, services, stop_service):
    """No token yet: a 503, and no restart is needed when Keystone is back."""
    stop_service('keystone')
    host.serve(host.grizzly(answer_within=5))
    assert is_unavailable(host.curl('a', META_DATA))
    services.start('keystone')
    recovers(host)


@pytest.mark.parametrize('name', ['neutron', 'nova'])
def test_an_unavailable_service_is_503_until_it_is_back(host, services, stop_service, name):
    """The token and the idle connections of the agent are of no use any more."""
    host.serve(host.grizzly(answer_within=5))
    recovers(host)
    stop_service(name)
    assert is_unavailable(host.curl('a', META_DATA))
    services.start(name)
    recovers(host)


@pytest.mark.parametrize('name', ['keystone', 'neutron', 'nova'])
def test_a_stalled_service_that_goes_on_before_the_deadline_is_no_error(host, services, name):
    """It accepts connections without a response, then goes on: the one request of the instance waits."""
    host.serve(host.grizzly(answer_within=25))
    services.freeze(name)
    try:
        with ThreadPoolExecutor() as _slots:
            asked = _slots.submit(host.curl, 'a', META_DATA)
            wait_until(lambda: has_unread_bytes(services.port(name)), f'a request to {name}')
            services.thaw(name)
            assert asked.result().status == 200
    finally:
        services.thaw(name)


def test_a_rejected_token_is_renewed_once(host, services):
    """A new password ends a user's tokens; here it is the old one again, so the next token is good."""
    host.serve(host.grizzly('metadata'))
    for name in ('a', 'b'):
        assert host.curl(name, META_DATA).status == 200
    given, seen = tokens_issued(services), len(services.requests_from('metadata_wsgi', 'neutron'))
    admin = Admin(services)
    user = admin.keystone('GET', 'users?name=metadata')['users'][0]['id']
    admin.keystone('PATCH', f'users/{user}', {'user': {'password': 'password of metadata'}})
    admin.close()
    # Keystone notes the end of tokens in seconds: one that is given in the same second is ended as well.
    wait_until(lambda: new_token_works(services), 'a token that is good')
    with ThreadPoolExecutor(4) as _slots:
        answers = list(_slots.map(lambda name: host.curl(name, META_DATA), ['a', 'b'] * 2))
    # Neutron asks Keystone about each of these questions, which on a busy machine is more than it can do in time.
    assert all(answer.status == 200 or is_unavailable(answer) for answer in answers), answers
    recovers(host)
    refused = [line for line in services.requests_from('metadata_wsgi', 'neutron')[seen:] if '" 401 ' in line]
    assert refused
    assert tokens_issued(services) == given + 1


def new_token_works(services):
    user = Admin(services, 'metadata', 'password of metadata', 'service')
    try:
        return bool(user.neutron('GET', 'networks?limit=1&fields=id'))
    except RuntimeError:
        return False
    finally:
        user.close()


@pytest.mark.usefixtures('short_tokens')
def test_tokens_are_renewed_before_they_expire_and_no_request_fails(host, services):
    host.serve(host.grizzly())
    given = tokens_issued(services)
    while tokens_issued(services) < given + 3:
        assert host.curl('a', META_DATA).status == 200
