# SPDX-License-Identifier: Apache-2.0
"""Checks that an operator's own gunicorn (``gunicorn --paste``) rejects malformed HTTP requests.

The programs of this package configure gunicorn strictly. Another gunicorn may have settings that accept malformed
requests or convert one header to another (``header_map = dangerous``). Then gunicorn and the proxy in front of it may
read the same bytes as different requests. So an instance could send a request as another instance.

gunicorn does not pass its settings to an application. But ``start_response`` is a bound method of gunicorn's response
object, and this object has the settings as ``cfg``. So ``catch_errors`` checks them at the first request. If a setting
is lenient, all requests get 503, and the log names the setting.
"""

from __future__ import annotations

from typing import Any

STRICT: dict[str, Any] = {
    # Header names with underscores are dropped: X_Forwarded_For would become a second value of X-Forwarded-For.
    'header_map': ('drop', 'refuse'),
    'permit_obsolete_folding': (False,),
    'strip_header_spaces': (False,),
    'casefold_http_method': (False,),
    'permit_unconventional_http_method': (False,),
    'permit_unconventional_http_version': (False,),
    'proxy_protocol': ('off', False),
    'protocol': ('http',),
    # After an upgrade to HTTP/2, gunicorn would read the body of the first request as the HTTP/2 preface.
    'http2_cleartext': ('off', False),
}
"""gunicorn's settings and their strict values, the recommended one first."""

DEFAULT_FORWARDER_HEADERS = ('SCRIPT_NAME', 'PATH_INFO')
"""Headers with an underscore that gunicorn accepts by default. This package does not read them."""


def message(lenient: list[str]) -> str:
    """The log message about these lenient settings, with the strict values."""
    return (
        f'gunicorn accepts malformed requests, so an instance could send requests as another one: its settings have '
        f'{", ".join(lenient)}; set the strict value or remove the setting'
    )


def settings_of(start_response: object) -> Any:
    """gunicorn's settings, from its ``start_response``; None for another server."""
    return getattr(getattr(start_response, '__self__', None), 'cfg', None)


def lenient_settings(settings: Any) -> list[str]:
    """The lenient settings, each as ``name = value instead of strict value``. [] if ``settings`` is None."""
    if settings is None:
        return []
    found = [
        f'{name} = {getattr(settings, name)} instead of {strict[0]}'
        for name, strict in STRICT.items()
        if hasattr(settings, name) and getattr(settings, name) not in strict
    ]
    extra_headers = {str(name).upper() for name in getattr(settings, 'forwarder_headers', ())} - {
        *DEFAULT_FORWARDER_HEADERS
    }
    if extra_headers:
        found.append(
            f'forwarder_headers = {",".join(sorted(extra_headers))} instead of {",".join(DEFAULT_FORWARDER_HEADERS)}'
        )
    return found
