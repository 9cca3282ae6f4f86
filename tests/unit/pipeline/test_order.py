# SPDX-License-Identifier: Apache-2.0
import pytest

from metadata_wsgi.errors import ConfigError
from metadata_wsgi.filters.catch_errors import CatchErrorsFilter
from metadata_wsgi.filters.deadline import DeadlineFilter
from metadata_wsgi.filters.header_source import HeaderSourceFilter
from metadata_wsgi.filters.instance import InstanceFilter
from metadata_wsgi.filters.request_id import RequestIdFilter
from metadata_wsgi.filters.signature import SignatureFilter
from metadata_wsgi.nova_proxy.upstream import UpstreamApp
from metadata_wsgi.pipeline import environ_keys, order
from tests.fakes import FakeHttpClient, FakeLookup

WRAP = {
    'catch_errors': CatchErrorsFilter,
    'request_id': RequestIdFilter,
    'deadline': lambda app: DeadlineFilter(app, request_timeout_s=9),
    'header_source': lambda app: HeaderSourceFilter(app, prefix='X-Quantum'),
    'instance': lambda app: InstanceFilter(app, lookup=FakeLookup([])),
    'signature': lambda app: SignatureFilter(app, secrets=(b'secret',)),
}


def pipeline(names, end=None):
    app = UpstreamApp([FakeHttpClient(200)]) if end is None else end
    for name in reversed(names.split()):
        app = WRAP[name](app)
    return app


class Opaque:
    """A filter of somebody else without REQUIRES and PROVIDES, its inner app under ``attribute``."""

    def __init__(self, app, attribute):
        setattr(self, attribute, app)

    def __call__(self, environ, start_response):
        raise NotImplementedError


def test_the_shipped_order_is_accepted():
    order.check(pipeline('catch_errors deadline header_source instance signature'))


@pytest.mark.parametrize(
    'names', ['header_source deadline instance signature', 'deadline header_source instance signature']
)
def test_other_orders_that_can_work_are_accepted(names):
    order.check(pipeline(names))


@pytest.mark.parametrize(
    ('names', 'sentence'),
    [
        (
            'deadline header_source signature instance',
            (
                'signature reads metadata_wsgi.instance, which instance writes only after it: '
                'put instance before signature'
            ),
        ),
        (
            'deadline instance header_source signature',
            (
                'instance reads metadata_wsgi.source, which header_source writes only after it: '
                'put header_source before instance'
            ),
        ),
        (
            'header_source instance deadline signature',
            (
                'instance reads metadata_wsgi.deadline, which deadline writes only after it: '
                'put deadline before instance'
            ),
        ),
        (
            'header_source instance signature',
            (
                'instance reads metadata_wsgi.deadline, which no filter before it writes: '
                'put the filter deadline before it'
            ),
        ),
        (
            'deadline header_source instance',
            (
                'upstream reads metadata_wsgi.signed_identity, which no filter before it writes: '
                'put the filter signature before it'
            ),
        ),
    ],
)
def test_an_order_that_cannot_work_is_refused_and_both_filters_are_named(names, sentence):
    with pytest.raises(ConfigError) as raised:
        order.check(pipeline(names))
    assert str(raised.value) == sentence


def test_a_key_of_another_project_is_named():
    class Reader(Opaque):
        REQUIRES = frozenset({'cloud.flavor'})

    with pytest.raises(ConfigError, match=r'Reader reads cloud\.flavor, .*put the filter that writes it before it'):
        order.check(Reader(pipeline('deadline header_source instance signature'), 'app'))


@pytest.mark.parametrize('attribute', ['app', 'application', 'middleware_wraps'])
def test_the_inner_app_of_a_third_party_filter_is_found(attribute):
    order.check(Opaque(pipeline('deadline header_source instance signature'), attribute))
    with pytest.raises(ConfigError, match='put header_source before instance'):
        order.check(Opaque(pipeline('deadline instance header_source signature'), attribute))


def test_a_filter_that_hides_its_inner_app_is_refused():
    with pytest.raises(ConfigError) as raised:
        order.check(Opaque(pipeline('deadline header_source instance signature'), '_hidden'))
    assert 'Opaque seems to be the end of the pipeline' in str(raised.value)
    assert 'an attribute named app' in str(raised.value)


def test_an_app_without_requires_is_refused():
    def application(environ, start_response):
        raise NotImplementedError

    with pytest.raises(ConfigError) as raised:
        order.check(pipeline('deadline', end=application))
    assert 'application seems to be the end of the pipeline' in str(raised.value)
    assert 'REQUIRES (frozenset() if it reads no key)' in str(raised.value)


def test_a_pipeline_that_wraps_itself_is_refused():
    round_about = Opaque(None, 'other')
    round_about.app = Opaque(round_about, 'app')
    with pytest.raises(ConfigError, match='wraps itself at'):
        order.check(round_about)


def test_the_chain_starts_with_the_outermost_filter():
    links = order.chain(pipeline('catch_errors deadline header_source instance signature'))
    assert [order.name(link) for link in links] == [
        'catch_errors', 'deadline', 'header_source', 'instance', 'signature', 'upstream',
    ]  # fmt: skip


def test_a_third_party_filter_is_named_by_module_and_class():
    assert order.name(Opaque(None, 'app')) == 'tests.unit.pipeline.test_order.Opaque'


def test_a_package_whose_name_starts_like_ours_is_not_ours():
    kind = type('Filter', (), {'__module__': 'metadata_wsgi_extra.quota'})
    assert order.name(kind()) == 'metadata_wsgi_extra.quota.Filter'


def test_the_error_message_names_the_filter_that_writes_each_key():
    """Checked against the filters themselves."""
    links = order.chain(pipeline('request_id deadline header_source instance signature'))
    writers = {key: order.name(link) for link in links for key in link.PROVIDES}
    assert writers == order.PROVIDED_BY
    assert set(writers) == {
        environ_keys.DEADLINE, environ_keys.SOURCE, environ_keys.CLIENT_IS_PROXY, environ_keys.INSTANCE,
        environ_keys.SIGNED_IDENTITY, environ_keys.REQUEST_ID,
    }  # fmt: skip
