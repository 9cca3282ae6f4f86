# SPDX-License-Identifier: Apache-2.0
"""What an operator's own gunicorn may have switched on."""

import pytest
from gunicorn.config import Config

from metadata_wsgi import server
from metadata_wsgi.filters.catch_errors import CatchErrorsFilter
from metadata_wsgi.strictness import leniences


class Server:
    """As gunicorn: ``start_response`` is a method of what knows the settings."""

    def __init__(self, **settings):
        self.cfg = Config()
        for name, value in settings.items():
            self.cfg.set(name, value)
        self.said = []

    def start_response(self, status, headers, exc_info=None):
        self.said.append(status)
        return lambda data: None


def test_gunicorns_defaults_and_ours_are_strict():
    assert leniences(Server().start_response) == []
    assert leniences(Server(**server.STRICT).start_response) == []


def test_another_server_cannot_be_asked():
    assert leniences(lambda status, headers: None) == []


@pytest.mark.parametrize(
    ('name', 'value', 'said'),
    [
        ('header_map', 'dangerous', 'header_map = dangerous'),
        ('permit_obsolete_folding', True, 'permit_obsolete_folding = True'),
        ('strip_header_spaces', True, 'strip_header_spaces = True'),
        ('casefold_http_method', True, 'casefold_http_method = True'),
        ('permit_unconventional_http_method', True, 'permit_unconventional_http_method = True'),
        ('permit_unconventional_http_version', True, 'permit_unconventional_http_version = True'),
        ('proxy_protocol', 'auto', 'proxy_protocol = auto'),
        ('forwarder_headers', 'PATH_INFO,X_FORWARDED_FOR', 'forwarder_headers = X_FORWARDED_FOR'),
    ],
)
def test_a_lenient_one_serves_nobody_and_the_log_says_why(caplog, name, value, said):
    reached = []
    guarded = CatchErrorsFilter(lambda environ, start_response: reached.append(environ))
    lenient = Server(**{name: value})
    for _ in range(2):
        b''.join(guarded({'REQUEST_METHOD': 'GET'}, lenient.start_response))
    assert (lenient.said, reached) == (['503 Service Unavailable'] * 2, [])
    assert len(caplog.records) == 1
    assert said in caplog.text
