# SPDX-License-Identifier: Apache-2.0
import pytest
import webtest

from metadata_wsgi.cache.local import LocalCache
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import ConfigError, InstanceLookupError, LookupUnavailable
from metadata_wsgi.filters.instance import InstanceFilter
from metadata_wsgi.filters.optional.lookup_cache import CacheFilter, filter_factory
from metadata_wsgi.lookup.cached import CachedLookup
from metadata_wsgi.pipeline import environ_keys
from tests.fakes import FakeClock, FakeLookup

SOURCE = environ_keys.Source('10.1.1.2', router_id='r1')
OLD, NEW = environ_keys.Instance('old', 'p1', 'port1'), environ_keys.Instance('new', 'p2', 'port2')


class Nova:
    """Knows some instances; says who asked. Marks the environ, as signature does."""

    REQUIRES = frozenset({environ_keys.INSTANCE})
    PROVIDES = frozenset()

    def __init__(self, *knows):
        self.knows, self.asked, self.closed = set(knows), [], 0

    def __call__(self, environ, start_response):
        asker = environ[environ_keys.INSTANCE].instance_id
        self.asked.append((environ['REQUEST_METHOD'], asker))
        environ.setdefault('HTTP_X_INSTANCE_ID', asker)
        status = '200 OK' if asker in self.knows else '404 Not Found'
        said = f'{environ["HTTP_X_INSTANCE_ID"]} {environ["PATH_INFO"]}'.encode()
        start_response(status, [('Content-Type', 'text/plain'), ('Content-Length', str(len(said)))])
        return Body(self, b'' if environ['REQUEST_METHOD'] == 'HEAD' else said)


class Body:
    def __init__(self, nova, said):
        self.nova, self.said = nova, said

    def __iter__(self):
        return iter([self.said] if self.said else [])

    def close(self):
        self.nova.closed += 1


class Way:
    """cache, instance, Nova; and a clock."""

    def __init__(self, nova, *outcomes):
        self.clock, self.directory, self.nova = FakeClock(), FakeLookup(*outcomes), nova
        memories = (LocalCache(limit=99, clock=self.clock), LocalCache(limit=99, clock=self.clock))
        remembering = CachedLookup(self.directory, *memories, fresh_s=10.0, none_s=1.0, stale_s=300.0)
        instance = InstanceFilter(nova, directory=remembering, sleep=self.clock.sleep)
        self.app = webtest.TestApp(CacheFilter(instance, remembering=remembering))

    def ask(self, method='GET', status=200, **extra):
        facts = {
            environ_keys.SOURCE: SOURCE,
            environ_keys.DEADLINE: Deadline.after(9.0, self.clock),
            **extra,
        }
        self.app.extra_environ = facts
        return self.app.request('/x', method=method, status=status)

    @property
    def lookups(self):
        return len(self.directory.asked)


def test_a_boot_is_one_lookup():
    way = Way(Nova('old'), [OLD])
    assert {way.ask().text for _ in range(28)} == {'old /x'}
    assert way.lookups == 1


def test_an_instance_that_is_known_already_is_left_alone():
    way = Way(Nova('new'), [OLD])
    assert way.ask(**{environ_keys.INSTANCE: NEW}).text == 'new /x'
    assert way.lookups == 0


@pytest.mark.parametrize('method', ['GET', 'HEAD'])
def test_an_instance_that_is_no_more_is_noticed_by_novas_404(method):
    """The address has another instance now: the guest gets that one's metadata in the same request."""
    way = Way(Nova('old'), [OLD], [NEW])
    way.ask()
    way.clock.sleep(2)
    way.nova.knows = {'new'}
    assert way.ask(method).text == ('new /x' if method == 'GET' else '')
    assert way.nova.asked[1:] == [(method, 'old'), (method, 'new')]
    assert way.nova.closed == 3


def test_it_is_sent_again_once_only():
    way = Way(Nova('old'), [OLD], [NEW])
    way.ask()
    way.clock.sleep(2)
    way.nova.knows = set()
    assert way.ask(status=404).text == 'new /x'
    assert len(way.nova.asked) == 3


def test_a_404_of_an_instance_that_did_not_move_is_novas_word():
    way = Way(Nova(), [OLD])
    way.ask(status=404)
    way.clock.sleep(2)
    assert way.ask(status=404).text == 'old /x'
    assert way.lookups == 2
    assert len(way.nova.asked) == 2


def test_a_404_to_one_that_was_looked_up_just_now_is_not_asked_about():
    way = Way(Nova(), [OLD])
    for _ in range(5):
        way.ask(status=404)
    assert way.lookups == 1


def test_one_that_moved_to_nobody_is_a_404_of_ours():
    way = Way(Nova('old'), [OLD], [])
    way.ask()
    way.clock.sleep(2)
    way.nova.knows = set()
    assert 'No instance was found' in way.ask(status=404).text


@pytest.mark.parametrize('fault', [LookupUnavailable('no route'), InstanceLookupError('no rights')])
def test_a_404_stands_when_nobody_can_say_whether_it_moved(fault):
    way = Way(Nova('old'), [OLD], fault)
    way.ask()
    way.clock.sleep(2)
    way.nova.knows = set()
    assert way.ask(status=404).text == 'old /x'
    way.nova.knows = {'old'}
    assert way.ask().text == 'old /x'


def test_while_quantum_is_away_guests_are_served_within_the_bound():
    way = Way(Nova('old'), [OLD], LookupUnavailable('no route'))
    way.ask()
    way.clock.sleep(290)
    assert way.ask().text == 'old /x'
    way.clock.sleep(10)
    assert way.ask(status=503).headers['Retry-After'] == '1'


@pytest.mark.parametrize('method', ['POST', 'PUT', 'DELETE'])
def test_a_write_is_not_done_in_a_remembered_name(method):
    """A password must not go to the instance that had the address before."""
    way = Way(Nova('old', 'new'), [OLD], [NEW])
    way.ask()
    assert way.ask(method).text == 'new /x'


def test_a_write_is_not_done_in_an_old_name_while_quantum_is_away():
    way = Way(Nova('old'), [OLD], LookupUnavailable('no route'))
    way.ask()
    way.ask('POST', status=503)


def test_a_write_is_not_sent_again():
    way = Way(Nova(), [OLD], [NEW])
    way.ask(status=404)
    way.clock.sleep(2)
    way.ask('POST', status=404)
    assert way.nova.asked == [('GET', 'old'), ('POST', 'new')]


def test_a_read_with_a_body_is_not_sent_again():
    """Its body is read already."""
    way = Way(Nova(), [OLD], [NEW])
    way.ask(status=404)
    way.clock.sleep(2)
    assert way.ask(status=404, CONTENT_LENGTH='3').text == 'old /x'


def test_a_503_is_not_remembered():
    way = Way(Nova('old'), InstanceLookupError('no rights'), [OLD])
    way.ask(status=503)
    assert way.ask().text == 'old /x'


def test_it_must_stand_before_a_filter_that_asks(tmp_path):
    path = tmp_path / 'agent.ini'
    path.write_text('[DEFAULT]\n')
    with pytest.raises(ConfigError, match='put lookup_cache before instance'):
        filter_factory({'config_file': str(path)})(Nova())


def test_late_404s_and_early_bodies_pass():
    """An app may call start_response when its body is read, and may write before it returns."""
    said = []

    def start_response(status, headers, exc_info=None):
        said.append(status)
        return said.append

    def late(environ, start_response):
        start_response('404 Late', [])
        yield b'late'

    def early(environ, start_response):
        start_response('404 Early', [])(b'early')
        return []

    class Nothing:
        def known(self, source):
            return None

        def moved(self, source, deadline):
            return False

    environ = {
        'REQUEST_METHOD': 'GET',
        environ_keys.SOURCE: SOURCE,
        environ_keys.DEADLINE: Deadline.after(9.0),
    }
    for app in (late, early):
        said += CacheFilter(app, remembering=Nothing())(dict(environ), start_response)
    assert said == ['404 Late', b'late', '404 Early', b'early']
