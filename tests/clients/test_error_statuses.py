# SPDX-License-Identifier: Apache-2.0
"""Status and Retry-After that curl in a guest receives for each fault behind the path.

``METADATA_WSGI_ANSWERS`` names a file to which the table is written, with the seconds that each response took; no test
checks the seconds. Without it the agent has a shorter deadline, to save time. Cases whose requests differ in target or
address share one run of the agent and are sent at the same time.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.clients.boot_table import write
from tests.clients.cloud_init_requests import OPENSTACK
from tests.clients.conftest import AMBIGUOUS_ADDRESS, BARE_ADDRESS, FAULT_ADDRESSES, ROUTER, UNKNOWN_ADDRESS
from tests.clients.curl import CurlResult, curl
from tests.cloud import SHIPPED
from tests.fault_injecting_proxy import Refused, Status, cut, hang, target

pytestmark = [pytest.mark.netns, pytest.mark.not_traced]

URL = 'http://169.254.169.254'
FILE = os.environ.get('METADATA_WSGI_ANSWERS')
FAULT_S = 15.0
"""Longer than the time of any response."""

SHARED_RUN, OWN_RUN = 'shared run', 'own run'

NOVA_RESPONDED = 'Nova responded'
NO_INSTANCE = 'the lookup succeeded and found no instance'
SEVERAL = 'more than one instance fits'
LOOKUP = 'Neutron or Keystone is unreachable, slow or failing'
RIGHTS = 'Neutron gives the agent too few rights'
NOVA = 'Nova is unreachable or failing, the request is a read'
AGENT_DOWN = 'the agent is down'
SECRET = 'Nova responds 403 to our signature'
WRITE = 'POST, PUT'
SENDER_IDS = 'wrong identity headers'
MALFORMED = 'malformed or ambiguous HTTP'
LIMITS = 'over the limits'
RATE = 'the filter rate_limit, 10 boots a minute'

Inject = Callable[..., None]


@dataclass(frozen=True, eq=False)
class Case:
    """One request with one fault.

    ``inject`` is called with the ``FaultableServices`` and the target of the request, before curl runs. Each run
    starts with an agent that has no token; a case with OWN_RUN may set ``options`` of the agent.
    ``retry_after`` is a regular expression for the whole header. ``nova`` is the number of requests that Nova must
    receive for the target; None: any number.
    """

    what: str
    fault: str
    status: int
    retry_after: str = ''
    curl: tuple[str, ...] = ()
    inject: Inject = lambda services, case_target: None
    nova: int | None = None
    run: str = SHARED_RUN
    options: Mapping[str, object] = field(default_factory=dict)
    sent_by: str = 'an instance'
    path: str = '/openstack/latest/meta_data.json'

    @property
    def name(self) -> str:
        """A unique name."""
        return f'{self.what}, {self.fault}'.replace(' ', '_').replace("'", '')

    @property
    def target(self) -> str:
        """A unique target; the service in Nova's place ignores the query."""
        return f'{self.path}?{CASES.index(self)}'


def nova(fault, *, times=1, for_s=FAULT_S):
    """Inject ``fault`` into Nova's responses for the case's target, for ``for_s`` seconds or, if 0, ``times`` times."""
    return lambda services, case_target: services.nova.plan(fault, at=target(case_target), times=times, for_s=for_s)


def once(fault):
    return nova(fault, for_s=0)


def quantum(fault, address):
    """Inject ``fault`` into Neutron's lookups of ``address``."""
    return lambda services, case_target: services.quantum.plan(
        fault, at=lambda request: address in request.target, for_s=FAULT_S
    )


def all_of(service, fault):
    """Inject ``fault`` into all responses of ``service``."""
    return lambda services, case_target: getattr(services, service).plan(fault, at=lambda request: True, for_s=FAULT_S)


def refuses(service, for_s):
    """Let ``service`` refuse connections for ``for_s`` seconds from the first request on."""
    return lambda services, case_target: getattr(services, service).plan(Refused(for_s), at=lambda request: True)


def restart(services, **options):
    """Restart the agent with the deadline of these tests."""
    services.restart(**({} if FILE else {'request_timeout': 6.0}), **options)


def agent_is_killed(services, case_target):
    services.path.kill_agent()


def agent_restarts(services, case_target):
    services.path.kill_agent()
    threading.Timer(1.0, restart, [services]).start()


def source(address):
    return ('--interface', address)


def requests_of_boots(number):
    """Send as many requests from the guest as ``number`` boots do; all succeed."""

    def run(services, case_target):
        # Several at a time: all of them must fit into a minute, also on a busy machine.
        with ThreadPoolExecutor(8) as pool:
            statuses = pool.map(
                lambda _: services.path.guest.request('GET', '/openstack')[0], range(number * len(OPENSTACK))
            )
        assert set(statuses) == {200}

    return run


def as_proxy(*headers):
    """curl options for headers as the namespace proxy sends them, valid or not."""
    return tuple(word for header in headers for word in ('--header', header))


def post(size):
    return ('--request', 'POST', '--header', 'Content-Type: text/plain', '--data-binary', 'p' * size)


A = 'X-Forwarded-For: 10.1.1.2'
R = f'X-Quantum-Router-ID: {ROUTER}'
PASSWORD = '/openstack/2013-04-04/password'
SOCKET = "the agent's socket"
ELSEWHERE = 'http://198.51.100.1/'

LIMITED = {'metadata_paste_config': '{directory}/limited.ini'}

CASES = [
    Case(NOVA_RESPONDED, '200', 200, nova=1),
    Case(NOVA_RESPONDED, '200 to HEAD', 200, curl=('--head',), nova=1),
    Case(NOVA_RESPONDED, '404', 404, inject=once(Status(404)), nova=1),
    Case(NOVA_RESPONDED, '410', 410, inject=once(Status(410)), nova=1),
    Case(NOVA_RESPONDED, '501', 501, inject=once(Status(501)), nova=1),
    Case(
        NOVA_RESPONDED, 'a redirect', 302, curl=('--max-redirs', '0'),
        inject=once(Status(302, (('Location', ELSEWHERE),))), nova=1,
    ),
    Case(NO_INSTANCE, 'no port has the address', 404, curl=source(UNKNOWN_ADDRESS), nova=0),
    Case(SEVERAL, 'two ports have the address', 404, curl=source(AMBIGUOUS_ADDRESS), nova=0),
    Case(
        LOOKUP, 'Neutron responds 503', 503, '1', source(FAULT_ADDRESSES[0]),
        quantum(Status(503), FAULT_ADDRESSES[0]), nova=0,
    ),
    Case(
        LOOKUP, 'Neutron hangs', 503, '1', source(FAULT_ADDRESSES[1]), quantum(hang, FAULT_ADDRESSES[1]), nova=0
    ),
    Case(LOOKUP, 'Neutron refuses connections', 503, '1', inject=refuses('quantum', FAULT_S), nova=0,
         run=OWN_RUN),
    Case(LOOKUP, 'Neutron refuses connections for 1 s', 200, inject=refuses('quantum', 1.0), nova=1,
         run=OWN_RUN),
    Case(LOOKUP, 'Keystone responds 500', 503, '1', inject=all_of('keystone', Status(500)), nova=0,
         run=OWN_RUN),
    Case(LOOKUP, 'Keystone hangs', 503, '1', inject=all_of('keystone', hang), nova=0, run=OWN_RUN),
    Case(LOOKUP, 'Keystone refuses connections', 503, '1', inject=refuses('keystone', FAULT_S),
         nova=0, run=OWN_RUN),
    Case(LOOKUP, "Keystone refuses the agent's password", 503, '1', options={'admin_password': 'wrong'}, nova=0,
         run=OWN_RUN),
    Case(RIGHTS, 'the role sees no port', 503, '1', options={'admin_user': 'reader'}, nova=0, run=OWN_RUN),
    *(
        Case(NOVA, f'{code} for ever', code, inject=nova(Status(code)))
        for code in (500, 502, 503, 504)
    ),
    *(Case(NOVA, f'{code} once', 200, inject=once(Status(code)), nova=2) for code in (500, 502, 503, 504)),
    Case(NOVA, 'hangs for ever', 503, '1', inject=nova(hang)),
    Case(NOVA, 'hangs once', 200, inject=once(hang), nova=2),
    Case(NOVA, 'cuts each response', 503, '1', inject=nova(cut)),
    Case(NOVA, 'cuts one response', 200, inject=once(cut), nova=2),
    Case(NOVA, 'refuses connections', 503, '1', inject=refuses('nova', FAULT_S), run=OWN_RUN),
    Case(NOVA, 'refuses connections for 1 s', 200, inject=refuses('nova', 1.0), run=OWN_RUN),
    Case(AGENT_DOWN, 'killed', 503, '1', inject=agent_is_killed, nova=0, run=OWN_RUN),
    Case(AGENT_DOWN, 'killed, started again 1 s later', 200, inject=agent_restarts, nova=1, run=OWN_RUN),
    Case(SECRET, '403', 403, inject=once(Status(403)), nova=1),
    Case(WRITE, 'POST', 200, curl=post(1020), nova=1, path=PASSWORD),
    Case(WRITE, 'POST, Nova responds 500', 500, curl=post(1020), inject=nova(Status(500)), nova=1, path=PASSWORD),
    Case(WRITE, 'POST, Nova hangs', 503, '1', curl=post(1020), inject=nova(hang), nova=1, path=PASSWORD),
    Case(WRITE, 'POST, Nova cuts its response', 503, '1', curl=(*source(BARE_ADDRESS), *post(1020)), inject=nova(cut),
         nova=1, path=PASSWORD),
    Case(WRITE, 'PUT, Nova responds 503', 503, curl=('--request', 'PUT', '--data-binary', 'x'),
         inject=nova(Status(503)), nova=1),
    Case(SENDER_IDS, 'router id and network id', 400, curl=as_proxy(A, R, 'X-Quantum-Network-ID: x'), nova=0,
         sent_by=SOCKET),
    Case(SENDER_IDS, 'neither router id nor network id', 400, curl=as_proxy(A), nova=0, sent_by=SOCKET),
    Case(SENDER_IDS, 'no client address', 400, curl=as_proxy(R), nova=0, sent_by=SOCKET),
    Case(SENDER_IDS, 'an invalid client address', 400, curl=as_proxy(R, 'X-Forwarded-For: 10.1.1.2, 10.1.1.3'),
         nova=0, sent_by=SOCKET),
    Case(SENDER_IDS, 'an id in a header with another prefix', 400,
         curl=as_proxy(A, R, f'X-Neutron-Router-ID: {ROUTER}'), nova=0, sent_by=SOCKET),
    Case(MALFORMED, 'two lengths', 400, curl=(*as_proxy('Content-Length: 1', 'Content-Length: 2'),), nova=0),
    Case(MALFORMED, 'a length and chunks', 400,
         curl=(*as_proxy('Content-Length: 1', 'Transfer-Encoding: chunked'),), nova=0),
    Case(MALFORMED, 'a header name with a space', 400, curl=as_proxy('X Y: 1'), nova=0),
    Case(MALFORMED, 'a target that is no path', 400, curl=('--request-target', 'x'), nova=0),
    Case(LIMITS, 'a body of 2 MiB', 413, curl=('--data-binary', '@{directory}/2MiB'), nova=0),
    Case(LIMITS, 'a header of 20 kB', 431, curl=as_proxy('X-Long: ' + 'x' * 20_000), nova=0),
    Case(RATE, 'after nine boots', 200, inject=requests_of_boots(9), nova=1, run=OWN_RUN, options=LIMITED),
    Case(RATE, 'after ten boots', 429, '[1-9]|[1-5][0-9]|60', inject=requests_of_boots(10), nova=0, run=OWN_RUN,
         options=LIMITED),
]  # fmt: skip

MALFORMED_CASES = [case for case in CASES if case.what == MALFORMED]


@dataclass
class Runs:
    """Executes each run once, when the result of its first case is needed, and stores the results of curl."""

    services: object
    directory: Path
    results: dict[Case, CurlResult] = field(default_factory=dict)
    nova: dict[Case, list] = field(default_factory=dict)
    log: dict[Case, str] = field(default_factory=dict)

    def __call__(self, case: Case) -> CurlResult:
        if case not in self.results:
            cases = [case] if case.run == OWN_RUN else [other for other in CASES if other.run == case.run]
            for _ in range(3):
                minute = time.time() // 60
                self._run(cases)
                # When a minute turns, the counter of rate_limit becomes an estimate, and a request too many may pass.
                if case.what != RATE or time.time() // 60 == minute:
                    break
        return self.results[case]

    def _run(self, cases: list[Case]) -> None:
        self.services.reset()
        restart(self.services, **{name: self._substitute(value) for name, value in cases[0].options.items()})
        for case in cases:
            case.inject(self.services, case.target)
        with ThreadPoolExecutor(len(cases)) as pool:
            self.results.update(zip(cases, pool.map(self._send, cases), strict=True))
        for case in cases:
            self.nova[case] = [seen for seen in self.services.nova.requests if seen.target == case.target]
            self.log[case] = self.services.path.log_text('quantum-metadata-agent*', max_chars=10**6)
        for injector in (self.services.keystone, self.services.quantum, self.services.nova):
            injector.stop_refusing()

    def _send(self, case: Case) -> CurlResult:
        words = [self._substitute(word) for word in case.curl]
        if case.sent_by == SOCKET:
            path = self.services.path.directory / 'metadata_proxy'
            return curl('--unix-socket', str(path), *words, f'http://localhost{case.target}')
        return curl(*words, URL + case.target, namespace=self.services.path.guest.namespace)

    def _substitute(self, text: str) -> str:
        return text.replace('{directory}', str(self.directory))

    def __str__(self) -> str:
        """The table as Markdown."""
        lines = ['| what happened | fault | sent by | status | Retry-After | seconds |', '| --- ' * 6 + '|']
        for case, results in sorted(self.results.items(), key=lambda item: CASES.index(item[0])):
            cells = (
                case.what,
                case.fault,
                case.sent_by,
                results.status,
                results.header('Retry-After'),
                f'{results.seconds:.2f}',
            )
            lines.append(f'| {" | ".join(str(cell) for cell in cells)} |')
        return '\n'.join(lines)


@pytest.fixture(scope='module')
def runs(shared_services, tmp_path_factory):
    """Executes the runs; at the end the table is written if ``METADATA_WSGI_ANSWERS`` is set."""
    directory = tmp_path_factory.mktemp('bodies')
    (directory / '2MiB').write_bytes(b'x' * (2 << 20))
    shipped = SHIPPED.read_text()
    limited = shipped.replace(
        'header_source instance signature upstream', 'header_source instance rate_limit signature upstream', 1
    )
    assert limited != shipped
    (directory / 'limited.ini').write_text(limited)
    made = Runs(shared_services, directory)
    yield made
    shared_services.reset()
    shared_services.restart()
    if FILE:
        write(FILE, str(made))


@pytest.mark.parametrize('case', CASES, ids=lambda case: case.name)
def test_error_status_and_retry_after(runs, case):
    results = runs(case)
    assert results.status == case.status, runs.log[case]
    assert re.fullmatch(case.retry_after, results.header('Retry-After')), results.header('Retry-After')
    if case.nova is not None:
        assert len(runs.nova[case]) == case.nova


@pytest.mark.parametrize('case', MALFORMED_CASES, ids=lambda case: case.name)
def test_malformed_request_closes_keepalive_connection(runs, case):
    assert runs(case).header('Connection') == 'close'


def find_case(what, fault=''):
    return next(case for case in CASES if case.what == what and case.fault.startswith(fault))


def test_redirect_is_passed_through(runs):
    assert runs(find_case(NOVA_RESPONDED, 'a redirect')).header('Location') == ELSEWHERE


def test_read_is_retried_until_the_deadline(runs):
    case = find_case(NOVA, '500 for ever')
    runs(case)
    assert len(runs.nova[case]) > 3


@pytest.mark.parametrize('case', [case for case in CASES if case.path == PASSWORD], ids=lambda case: case.name)
def test_post_body_and_content_length_are_forwarded(runs, case):
    runs(case)
    (seen,) = runs.nova[case]
    assert (seen.body, {**seen.headers}['content-length']) == (b'p' * 1020, '1020')


def test_log_names_the_ambiguous_ports(runs):
    case = find_case(SEVERAL)
    runs(case)
    assert 'port-one' in runs.log[case]
    assert 'port-other' in runs.log[case]


def test_log_names_the_shared_secrets_to_compare(runs):
    case = find_case(SECRET)
    runs(case)
    assert 'compare metadata_proxy_shared_secret' in runs.log[case]


def test_log_names_the_missing_role(runs):
    case = find_case(RIGHTS)
    runs(case)
    assert 'give the user the role service' in runs.log[case]
