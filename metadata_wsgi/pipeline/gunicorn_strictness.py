# SPDX-License-Identifier: Apache-2.0
"""Checks that an operator's own gunicorn (``gunicorn --paste``) reads HTTP as strictly as this package relies on.

The package's own programs set gunicorn so. Another gunicorn may have settings that accept malformed requests or let one
header become another (``header_map = dangerous``). Then gunicorn and the proxy in front of it may read the same bytes
as different requests, and an instance can send a request as another instance.

gunicorn does not give its settings to an application, neither while it loads it nor in the environ. The bound method
``start_response`` that it passes with each request belongs to its response object, which has them as ``cfg``. So
``catch_errors`` checks them at the first request: if gunicorn is lenient, all requests are answered 503, and the log
says why.
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
    # An upgraded connection is read by another parser, which takes the first request's body for its preface.
    'http2_cleartext': ('off', False),
}
"""gunicorn's settings and their strict values, the recommended one first."""

DEFAULT_FORWARDER_HEADERS = ('SCRIPT_NAME', 'PATH_INFO')
"""Headers with an underscore that gunicorn accepts by default; this package reads neither."""


def message(lenient: list[str]) -> str:
    """The sentence for the log about these lenient settings, with the right values."""
    return (
        f'gunicorn accepts malformed requests, by which one instance could send requests as another: its settings have '
        f'{", ".join(lenient)}; set the strict value or remove the setting'
    )


def settings_of(start_response: object) -> Any:
    """The settings of the gunicorn that passed this ``start_response``; None for any other server."""
    return getattr(getattr(start_response, '__self__', None), 'cfg', None)


def lenient_settings(settings: Any) -> list[str]:
    """The lenient ones of gunicorn's ``settings``, as ``name = value instead of strict value``; [] for None."""
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
