# SPDX-License-Identifier: Apache-2.0
"""What curl in a guest sees when something behind the path is wrong: status and Retry-After, row by row.

``METADATA_WSGI_ANSWERS`` names a file that the table is written to, with the seconds that each answer took; no
test looks at these. Without it the agent's deadline is a shorter one, to save time. Cases that can be told apart by
their target or address share a scene and wait together.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.clients.conftest import AMBIGUOUS_ADDRESS, BARE_ADDRESS, NOBODYS_ADDRESS, ROUTER, UNLUCKY_ADDRESSES
from tests.clients.crawls import OPENSTACK
from tests.clients.curl import Saw, curl
from tests.clients.table import write
from tests.cloud import SHIPPED
from tests.injector import Refused, Status, cut, hang, target

pytestmark = pytest.mark.netns

URL = 'http://169.254.169.254'
FILE = os.environ.get('METADATA_WSGI_ANSWERS')
LONG_S = 15.0
"""Longer than any answer takes."""

TOGETHER, ALONE = 'together', 'alone'

ANSWERED = 'Nova answered'
NONE = 'the lookup succeeded and found no instance'
SEVERAL = 'more than one instance fits'
LOOKUP = 'Quantum or Keystone is unreachable, slow or failing'
RIGHTS = 'Quantum gives the agent too few rights'
NOVA = 'Nova is unreachable or failing, the request is a read'
AGENT = 'the agent is away'
SECRET = 'Nova answers 403 to our signature'
WRITE = 'POST, PUT'
WHO = 'both ids, no id, no address, an address that is none'
MALFORMED = 'malformed or ambiguous HTTP'
LIMITS = 'over the limits'
RATE = 'the filter rate_limit, 10 boots a minute'

Inject = Callable[..., None]


@dataclass(frozen=True, eq=False)
class Case:
    """``inject`` is called with the way's ``Behind`` and the target of the request, before curl is; a scene begins
    with an agent that has no token yet, and ``options`` of the one case that is ALONE.

    ``retry_after`` is a regular expression for all of the header. ``nova`` is how often Nova may have been asked for
    the target; None: as often as there was time for.
    """

    what: str
    fault: str
    status: int
    retry_after: str = ''
    curl: tuple[str, ...] = ()
    inject: Inject = lambda behind, asked: None
    nova: int | None = None
    scene: str = TOGETHER
    options: Mapping[str, object] = field(default_factory=dict)
    asker: str = 'a guest'
    path: str = '/openstack/latest/meta_data.json'

    @property
    def name(self) -> str:
        """Words that no other case has."""
        return f'{self.what}, {self.fault}'.replace(' ', '_').replace("'", '')

    @property
    def target(self) -> str:
        """A target that no other case has; what stands in Nova's place looks at no query."""
        return f'{self.path}?{CASES.index(self)}'


def nova(fault, *, times=1, for_s=LONG_S):
    """Let Nova fail at the case's target: for as long as anybody asks, or ``times`` where ``for_s`` is 0."""
    return lambda behind, asked: behind.nova.plan(fault, at=target(asked), times=times, for_s=for_s)


def once(fault):
    return nova(fault, for_s=0)


def quantum(fault, address):
    """Let Quantum fail at its questions for an address."""
    return lambda behind, asked: behind.quantum.plan(fault, at=lambda seen: address in seen.target, for_s=LONG_S)


def all_of(service, fault):
    """Let everything that is asked of a service fail."""
    return lambda behind, asked: getattr(behind, service).plan(fault, at=lambda seen: True, for_s=LONG_S)


def away(service, for_s):
    """Let a service be away for so long, from the first request on."""
    return lambda behind, asked: getattr(behind, service).plan(Refused(for_s), at=lambda seen: True)


def restart(behind, **options):
    """Another agent, with the deadline of these tests."""
    behind.restart(**({} if FILE else {'answer_within': 3.0}), **options)


def agent_ends(behind, asked):
    behind.way.end_agent()


def agent_restarts(behind, asked):
    behind.way.end_agent()
    threading.Timer(1.0, restart, [behind]).start()


def source(address):
    return ('--interface', address)


def boots(number):
    """Let the guest ask as often as so many boots do, and be answered."""

    def run(behind, asked):
        said = [behind.way.guest.ask('GET', '/openstack')[0] for _ in range(number * len(OPENSTACK))]
        assert set(said) == {200}

    return run


def as_proxy(*headers):
    """What the namespace proxy would say, or would never say."""
    return tuple(word for header in headers for word in ('--header', header))


def post(size):
    return ('--request', 'POST', '--header', 'Content-Type: text/plain', '--data-binary', 'p' * size)


A = 'X-Forwarded-For: 10.1.1.2'
R = f'X-Quantum-Router-ID: {ROUTER}'
PASSWORD = '/openstack/2013-04-04/password'
SOCKET = "the agent's socket"
ELSEWHERE = 'http://198.51.100.1/'

LIMITED = {'api_paste_config': '{directory}/limited.ini'}

CASES = [
    Case(ANSWERED, '200', 200, nova=1),
    Case(ANSWERED, '200 to HEAD', 200, curl=('--head',), nova=1),
    Case(ANSWERED, '404', 404, inject=once(Status(404)), nova=1),
    Case(ANSWERED, '410', 410, inject=once(Status(410)), nova=1),
    Case(ANSWERED, '501', 501, inject=once(Status(501)), nova=1),
    Case(
        ANSWERED, 'a redirect', 302, curl=('--max-redirs', '0'), inject=once(Status(302, (('Location', ELSEWHERE),))),
        nova=1,
    ),
    Case(NONE, 'no port has the address', 404, curl=source(NOBODYS_ADDRESS), nova=0),
    Case(SEVERAL, 'two ports have the address', 404, curl=source(AMBIGUOUS_ADDRESS), nova=0),
    Case(
        LOOKUP, 'Quantum answers 503', 503, '1', source(UNLUCKY_ADDRESSES[0]),
        quantum(Status(503), UNLUCKY_ADDRESSES[0]), nova=0,
    ),
    Case(
        LOOKUP, 'Quantum hangs', 503, '1', source(UNLUCKY_ADDRESSES[1]), quantum(hang, UNLUCKY_ADDRESSES[1]), nova=0
    ),
    Case(LOOKUP, 'Quantum refuses connections', 503, '1', inject=away('quantum', LONG_S), nova=0,
         scene=ALONE),
    Case(LOOKUP, 'Quantum refuses connections for 1 s', 200, inject=away('quantum', 1.0), nova=1,
         scene=ALONE),
    Case(LOOKUP, 'Keystone answers 500', 503, '1', inject=all_of('keystone', Status(500)), nova=0,
         scene=ALONE),
    Case(LOOKUP, 'Keystone hangs', 503, '1', inject=all_of('keystone', hang), nova=0, scene=ALONE),
    Case(LOOKUP, 'Keystone refuses connections', 503, '1', inject=away('keystone', LONG_S),
         nova=0, scene=ALONE),
    Case(LOOKUP, "Keystone refuses the agent's password", 503, '1', options={'admin_password': 'wrong'}, nova=0,
         scene=ALONE),
    Case(RIGHTS, 'the role sees no port', 503, '1', options={'admin_user': 'reader'}, nova=0, scene=ALONE),
    *(
        Case(NOVA, f'{code} for ever', code, inject=nova(Status(code)))
        for code in (500, 502, 503, 504)
    ),
    *(Case(NOVA, f'{code} once', 200, inject=once(Status(code)), nova=2) for code in (500, 502, 503, 504)),
    Case(NOVA, 'hangs for ever', 503, '1', inject=nova(hang)),
    Case(NOVA, 'hangs once', 200, inject=once(hang), nova=2),
    Case(NOVA, 'cuts each answer', 503, '1', inject=nova(cut)),
    Case(NOVA, 'cuts one answer', 200, inject=once(cut), nova=2),
    Case(NOVA, 'refuses connections', 503, '1', inject=away('nova', LONG_S), scene=ALONE),
    Case(NOVA, 'refuses connections for 1 s', 200, inject=away('nova', 1.0), scene=ALONE),
    Case(AGENT, 'killed', 503, '1', inject=agent_ends, nova=0, scene=ALONE),
    Case(AGENT, 'killed, started again 1 s later', 200, inject=agent_restarts, nova=1, scene=ALONE),
    Case(SECRET, '403', 403, inject=once(Status(403)), nova=1),
    Case(WRITE, 'POST', 200, curl=post(1020), nova=1, path=PASSWORD),
    Case(WRITE, 'POST, Nova answers 500', 500, curl=post(1020), inject=nova(Status(500)), nova=1, path=PASSWORD),
    Case(WRITE, 'POST, Nova hangs', 503, '1', curl=post(1020), inject=nova(hang), nova=1, path=PASSWORD),
    Case(WRITE, 'POST, Nova cuts its answer', 503, '1', curl=(*source(BARE_ADDRESS), *post(1020)), inject=nova(cut),
         nova=1, path=PASSWORD),
    Case(WRITE, 'PUT, Nova answers 503', 503, curl=('--request', 'PUT', '--data-binary', 'x'),
         inject=nova(Status(503)), nova=1),
    Case(WHO, 'both ids', 400, curl=as_proxy(A, R, 'X-Quantum-Network-ID: x'), nova=0, asker=SOCKET),
    Case(WHO, 'no id', 400, curl=as_proxy(A), nova=0, asker=SOCKET),
    Case(WHO, 'no address', 400, curl=as_proxy(R), nova=0, asker=SOCKET),
    Case(WHO, 'an address that is none', 400, curl=as_proxy(R, 'X-Forwarded-For: 10.1.1.2, 10.1.1.3'), nova=0,
         asker=SOCKET),
    Case(WHO, 'an id under another prefix', 400, curl=as_proxy(A, R, f'X-Neutron-Router-ID: {ROUTER}'), nova=0,
         asker=SOCKET),
    Case(MALFORMED, 'two lengths', 400, curl=(*as_proxy('Content-Length: 1', 'Content-Length: 2'),), nova=0),
    Case(MALFORMED, 'a length and chunks', 400,
         curl=(*as_proxy('Content-Length: 1', 'Transfer-Encoding: chunked'),), nova=0),
    Case(MALFORMED, 'a header name with a space', 400, curl=as_proxy('X Y: 1'), nova=0),
    Case(MALFORMED, 'a target that is no path', 400, curl=('--request-target', 'x'), nova=0),
    Case(LIMITS, 'a body of 2 MiB', 413, curl=('--data-binary', '@{directory}/2MiB'), nova=0),
    Case(LIMITS, 'a header of 20 kB', 431, curl=as_proxy('X-Long: ' + 'x' * 20_000), nova=0),
    Case(RATE, 'after nine boots', 200, inject=boots(9), nova=1, scene=ALONE, options=LIMITED),
    Case(RATE, 'after ten boots', 429, '[1-9]|[1-5][0-9]|60', inject=boots(10), nova=0, scene=ALONE, options=LIMITED),
]  # fmt: skip

CLOSED = [case for case in CASES if case.what == MALFORMED]


@dataclass
class Shown:
    """Runs each scene once, when the first of its cases is asked for, and remembers what curl saw."""

    behind: object
    directory: Path
    saw: dict[Case, Saw] = field(default_factory=dict)
    nova: dict[Case, list] = field(default_factory=dict)
    log: dict[Case, str] = field(default_factory=dict)

    def __call__(self, case: Case) -> Saw:
        if case not in self.saw:
            self._run([case] if case.scene == ALONE else [other for other in CASES if other.scene == case.scene])
        return self.saw[case]

    def _run(self, cases: list[Case]) -> None:
        self.behind.forget()
        restart(self.behind, **{name: self._here(value) for name, value in cases[0].options.items()})
        for case in cases:
            case.inject(self.behind, case.target)
        with ThreadPoolExecutor(len(cases)) as pool:
            self.saw.update(zip(cases, pool.map(self._ask, cases), strict=True))
        for case in cases:
            self.nova[case] = [seen for seen in self.behind.nova.requests if seen.target == case.target]
            self.log[case] = self.behind.way.said('quantum-metadata-agent*', most=10**6)
        for injector in (self.behind.keystone, self.behind.quantum, self.behind.nova):
            injector.mend()

    def _ask(self, case: Case) -> Saw:
        words = [self._here(word) for word in case.curl]
        if case.asker == SOCKET:
            path = self.behind.way.directory / 'metadata_proxy'
            return curl('--unix-socket', str(path), *words, f'http://localhost{case.target}')
        return curl(*words, URL + case.target, namespace=self.behind.way.guest.namespace)

    def _here(self, text: str) -> str:
        return text.replace('{directory}', str(self.directory))

    def __str__(self) -> str:
        """Markdown."""
        lines = ['| what happened | fault | asked by | status | Retry-After | seconds |', '| --- ' * 6 + '|']
        for case, saw in sorted(self.saw.items(), key=lambda item: CASES.index(item[0])):
            cells = (case.what, case.fault, case.asker, saw.status, saw.header('Retry-After'), f'{saw.seconds:.2f}')
            lines.append(f'| {" | ".join(str(cell) for cell in cells)} |')
        return '\n'.join(lines)


@pytest.fixture(scope='module')
def shown(shared_behind, tmp_path_factory):
    """Runs the scenes; in the end the table is written where that is wanted."""
    directory = tmp_path_factory.mktemp('bodies')
    (directory / '2MiB').write_bytes(b'x' * (2 << 20))
    shipped = SHIPPED.read_text()
    limited = shipped.replace(
        'header_source instance signature upstream', 'header_source instance rate_limit signature upstream', 1
    )
    assert limited != shipped
    (directory / 'limited.ini').write_text(limited)
    made = Shown(shared_behind, directory)
    yield made
    shared_behind.forget()
    shared_behind.restart()
    if FILE:
        write(FILE, str(made))


@pytest.mark.parametrize('case', CASES, ids=lambda case: case.name)
def test_the_guest_hears(shown, case):
    saw = shown(case)
    assert saw.status == case.status, shown.log[case]
    assert re.fullmatch(case.retry_after, saw.header('Retry-After')), saw.header('Retry-After')
    if case.nova is not None:
        assert len(shown.nova[case]) == case.nova


@pytest.mark.parametrize('case', CLOSED, ids=lambda case: case.name)
def test_after_a_malformed_request_the_connection_ends(shown, case):
    assert shown(case).header('Connection') == 'close'


def case_of(what, fault=''):
    return next(case for case in CASES if case.what == what and case.fault.startswith(fault))


def test_a_redirect_is_the_guests_to_follow(shown):
    assert shown(case_of(ANSWERED, 'a redirect')).header('Location') == ELSEWHERE


def test_a_read_is_asked_again_until_the_deadline(shown):
    case = case_of(NOVA, '500 for ever')
    shown(case)
    assert len(shown.nova[case]) > 3


@pytest.mark.parametrize('case', [case for case in CASES if case.path == PASSWORD], ids=lambda case: case.name)
def test_a_post_arrives_whole_with_its_length(shown, case):
    shown(case)
    (seen,) = shown.nova[case]
    assert (seen.body, {**seen.headers}['content-length']) == (b'p' * 1020, '1020')


def test_the_log_names_the_ports_that_fit(shown):
    case = case_of(SEVERAL)
    shown(case)
    assert 'port-one' in shown.log[case]
    assert 'port-other' in shown.log[case]


def test_the_log_names_the_secrets_to_compare(shown):
    case = case_of(SECRET)
    shown(case)
    assert 'compare metadata_proxy_shared_secret' in shown.log[case]


def test_the_log_says_which_role_is_missing(shown):
    case = case_of(RIGHTS)
    shown(case)
    assert 'give the user the role service' in shown.log[case]
