# SPDX-License-Identifier: Apache-2.0
"""Settings of an operator's own gunicorn that accept malformed requests."""

import pytest
from gunicorn.config import Config

from metadata_wsgi.filters.catch_errors import CatchErrorsFilter
from metadata_wsgi.pipeline import gunicorn_strictness
from metadata_wsgi.server import master


class FakeGunicornResponse:
    """Like gunicorn's response object: it has the settings, and ``start_response`` is its method."""

    def __init__(self, **settings):
        self.cfg = Config()
        for name, value in settings.items():
            self.cfg.set(name, value)
        self.statuses = []

    def start_response(self, status, headers, exc_info=None):
        self.statuses.append(status)
        self.headers = dict(headers)
        return lambda data: None


@pytest.mark.parametrize('settings', [{}, master.STRICT])
def test_gunicorns_defaults_and_ours_are_strict(settings):
    response = FakeGunicornResponse(**settings)
    assert gunicorn_strictness.lenient_settings(gunicorn_strictness.settings_of(response.start_response)) == []


def test_another_server_has_no_settings_to_check():
    assert gunicorn_strictness.settings_of(lambda status, headers: None) is None
    assert gunicorn_strictness.lenient_settings(None) == []


@pytest.mark.parametrize(
    ('name', 'value', 'named'),
    [
        ('header_map', 'dangerous', 'header_map = dangerous instead of drop'),
        ('permit_obsolete_folding', True, 'permit_obsolete_folding = True instead of False'),
        ('strip_header_spaces', True, 'strip_header_spaces = True instead of False'),
        ('casefold_http_method', True, 'casefold_http_method = True instead of False'),
        ('permit_unconventional_http_method', True, 'permit_unconventional_http_method = True instead of False'),
        ('permit_unconventional_http_version', True, 'permit_unconventional_http_version = True instead of False'),
        ('proxy_protocol', 'auto', 'proxy_protocol = auto instead of off'),
        ('http2_cleartext', 'upgrade', 'http2_cleartext = upgrade instead of off'),
        (
            *('forwarder_headers', 'PATH_INFO,X_FORWARDED_FOR'),
            'forwarder_headers = X_FORWARDED_FOR instead of SCRIPT_NAME,PATH_INFO',
        ),
    ],
)
def test_behind_a_lenient_gunicorn_every_request_is_answered_503_with_one_log_line(caplog, name, value, named):
    reached = []
    guarded = CatchErrorsFilter(lambda environ, start_response: reached.append(environ))
    lenient = FakeGunicornResponse(**{name: value})
    for _ in range(2):
        b''.join(guarded({'REQUEST_METHOD': 'GET'}, lenient.start_response))
    assert (lenient.statuses, reached) == (['503 Service Unavailable'] * 2, [])
    assert lenient.headers['X-Openstack-Request-Id'].startswith('req-')
    assert len(caplog.records) == 1
    sentence = gunicorn_strictness.message([named])
    assert caplog.records[0].getMessage().endswith(f': {sentence}')
    assert f'its settings have {named}; set' in sentence
