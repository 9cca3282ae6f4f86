# SPDX-License-Identifier: Apache-2.0
import pytest

from metadata_wsgi.errors import ConfigError
from metadata_wsgi.filters.catch_errors import CatchErrorsFilter
from metadata_wsgi.filters.deadline import DeadlineFilter
from metadata_wsgi.filters.header_source import HeaderSourceFilter
from metadata_wsgi.filters.instance import InstanceFilter
from metadata_wsgi.filters.signature import SignatureFilter
from metadata_wsgi.nova_proxy.upstream import UpstreamApp
from metadata_wsgi.pipeline import environ_keys, order
from tests.fakes import FakeHttpClient, FakeLookup

WRAP = {
    'catch_errors': CatchErrorsFilter,
    'deadline': lambda app: DeadlineFilter(app, answer_within_s=9),
    'header_source': lambda app: HeaderSourceFilter(app, prefix='X-Quantum'),
    'instance': lambda app: InstanceFilter(app, lookup=FakeLookup([])),
    'signature': lambda app: SignatureFilter(app, shared_secret=b'secret'),
}


def pipeline(names, end=None):
    app = UpstreamApp([FakeHttpClient(200)]) if end is None else end
    for name in reversed(names.split()):
        app = WRAP[name](app)
    return app


class Opaque:
    """A third party's filter that says nothing of facts and keeps what it wraps under ``attribute``."""

    def __init__(self, app, attribute):
        setattr(self, attribute, app)

    def __call__(self, environ, start_response):
        raise NotImplementedError


def test_the_shipped_order_is_taken():
    order.check(pipeline('catch_errors deadline header_source instance signature'))


@pytest.mark.parametrize(
    'names', ['header_source deadline instance signature', 'deadline header_source instance signature']
)
def test_other_orders_that_can_work_are_taken(names):
    order.check(pipeline(names))


@pytest.mark.parametrize(
    ('names', 'sentence'),
    [
        (
            'deadline header_source signature instance',
            (
                'signature reads metadata_wsgi.instance, which instance establishes only after it: '
                'put instance before signature'
            ),
        ),
        (
            'deadline instance header_source signature',
            'instance reads metadata_wsgi.source, which header_source establishes only after it: put header_source before instance',
        ),
        (
            'header_source instance deadline signature',
            (
                'instance reads metadata_wsgi.deadline, which deadline establishes only after it: '
                'put deadline before instance'
            ),
        ),
        (
            'header_source instance signature',
            (
                'instance reads metadata_wsgi.deadline, which no filter before it establishes: '
                'put one that does (deadline) before it'
            ),
        ),
        (
            'deadline header_source instance',
            (
                'upstream reads the signature, which no filter before it establishes: '
                'put one that does (signature) before it'
            ),
        ),
    ],
)
def test_an_order_that_cannot_work_is_refused_with_both_names(names, sentence):
    with pytest.raises(ConfigError) as raised:
        order.check(pipeline(names))
    assert str(raised.value) == sentence


def test_a_fact_that_nobody_ships_is_named():
    class Reader(Opaque):
        REQUIRES = frozenset({'cloud.flavor'})

    with pytest.raises(ConfigError, match=r'Reader reads cloud\.flavor, .*put one that does \(your own\) before it'):
        order.check(Reader(pipeline('deadline header_source instance signature'), 'app'))


@pytest.mark.parametrize('attribute', ['app', 'application', 'middleware_wraps'])
def test_a_third_party_filter_is_seen_through(attribute):
    order.check(Opaque(pipeline('deadline header_source instance signature'), attribute))
    with pytest.raises(ConfigError, match='put header_source before instance'):
        order.check(Opaque(pipeline('deadline instance header_source signature'), attribute))


def test_a_filter_that_hides_what_it_wraps_is_refused():
    with pytest.raises(ConfigError) as raised:
        order.check(Opaque(pipeline('deadline header_source instance signature'), '_hidden'))
    assert 'Opaque ends the pipeline' in str(raised.value)
    assert 'an attribute named app' in str(raised.value)


def test_an_app_that_does_not_say_what_it_reads_is_refused():
    def application(environ, start_response):
        raise NotImplementedError

    with pytest.raises(ConfigError) as raised:
        order.check(pipeline('deadline', end=application))
    assert 'application ends the pipeline' in str(raised.value)
    assert 'REQUIRES (frozenset() if it reads no fact)' in str(raised.value)


def test_a_pipeline_that_wraps_itself_ends():
    round_about = Opaque(None, 'other')
    round_about.app = Opaque(round_about, 'app')
    with pytest.raises(ConfigError, match='wraps itself at'):
        order.check(round_about)


def test_the_chain_goes_from_the_outermost_inwards():
    links = order.chain(pipeline('catch_errors deadline header_source instance signature'))
    assert [order.name(link) for link in links] == [
        'catch_errors', 'deadline', 'header_source', 'instance', 'signature', 'upstream',
    ]  # fmt: skip


def test_a_third_party_is_named_by_where_it_lives():
    assert order.name(Opaque(None, 'app')) == 'tests.unit.pipeline.test_order.Opaque'


def test_a_package_whose_name_begins_like_ours_is_not_ours():
    kind = type('Filter', (), {'__module__': 'metadata_wsgi_extra.quota'})
    assert order.name(kind()) == 'metadata_wsgi_extra.quota.Filter'


def test_the_complaint_knows_who_establishes_each_fact():
    """Held against the filters themselves, so that the sentence cannot send anyone to the wrong one."""
    links = order.chain(pipeline('deadline header_source instance signature'))
    owners = {fact: order.name(link) for link in links for fact in link.PROVIDES}
    assert owners == order.OWNERS
    assert set(owners) == {
        environ_keys.DEADLINE, environ_keys.SOURCE, environ_keys.FORWARDED, environ_keys.INSTANCE, environ_keys.SIGNED,
    }  # fmt: skip
