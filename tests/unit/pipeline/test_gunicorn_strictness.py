# SPDX-License-Identifier: Apache-2.0
"""What an operator's own gunicorn may have switched on."""

import pytest
from gunicorn.config import Config

from metadata_wsgi.errors import ConfigError
from metadata_wsgi.filters.catch_errors import CatchErrorsFilter, filter_factory
from metadata_wsgi.pipeline import gunicorn_strictness
from metadata_wsgi.server import master


class Server:
    """As gunicorn: what knows the settings loads the pipeline, and ``start_response`` is a method of it."""

    def __init__(self, **settings):
        self.cfg = Config()
        for name, value in settings.items():
            self.cfg.set(name, value)
        self.said = []

    def load(self):
        return filter_factory({})(end)

    def start_response(self, status, headers, exc_info=None):
        self.said.append(status)
        return lambda data: None


def end(environ, start_response):
    raise NotImplementedError


end.REQUIRES = frozenset()


@pytest.mark.parametrize('settings', [{}, master.STRICT])
def test_gunicorns_defaults_and_ours_are_strict(settings):
    strict = Server(**settings)
    assert gunicorn_strictness.leniences(gunicorn_strictness.calling(strict.start_response)) == []
    assert strict.load().app is end


def test_another_server_cannot_be_asked():
    assert gunicorn_strictness.calling(lambda status, headers: None) is None
    assert gunicorn_strictness.leniences(None) == []


LENIENT = pytest.mark.parametrize(
    ('name', 'value', 'said'),
    [
        ('header_map', 'dangerous', 'header_map = dangerous instead of drop'),
        ('permit_obsolete_folding', True, 'permit_obsolete_folding = True instead of False'),
        ('strip_header_spaces', True, 'strip_header_spaces = True instead of False'),
        ('casefold_http_method', True, 'casefold_http_method = True instead of False'),
        ('permit_unconventional_http_method', True, 'permit_unconventional_http_method = True instead of False'),
        ('permit_unconventional_http_version', True, 'permit_unconventional_http_version = True instead of False'),
        ('proxy_protocol', 'auto', 'proxy_protocol = auto instead of off'),
        (
            *('forwarder_headers', 'PATH_INFO,X_FORWARDED_FOR'),
            'forwarder_headers = X_FORWARDED_FOR instead of SCRIPT_NAME,PATH_INFO',
        ),
    ],
)


@LENIENT
def test_a_lenient_one_cannot_load_a_pipeline(name, value, said):
    with pytest.raises(ConfigError) as raised:
        Server(**{name: value}).load()
    assert str(raised.value) == (
        'gunicorn mends malformed requests, by which a guest could pass for another: '
        f'its settings have {said}; set it so or leave it out'
    )


def test_settings_of_something_else_do_not_matter():
    """An application that loads pipelines may have a ``cfg`` of its own."""

    class Loader:
        cfg = {'header_map': 'dangerous'}  # noqa: RUF012

        def load(self):
            return filter_factory({})(end)

    assert Loader().load().app is end


@LENIENT
def test_a_lenient_one_that_was_given_a_pipeline_serves_nobody_and_the_log_says_why(caplog, name, value, said):
    reached = []
    guarded = CatchErrorsFilter(lambda environ, start_response: reached.append(environ))
    lenient = Server(**{name: value})
    for _ in range(2):
        b''.join(guarded({'REQUEST_METHOD': 'GET'}, lenient.start_response))
    assert (lenient.said, reached) == (['503 Service Unavailable'] * 2, [])
    assert len(caplog.records) == 1
    assert said in caplog.text
