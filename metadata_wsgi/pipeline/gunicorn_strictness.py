# SPDX-License-Identifier: Apache-2.0
"""Whether the server that calls us reads HTTP as strictly as we count on.

Our own programs set gunicorn so. An operator's own ``gunicorn --paste`` may have switches on that mend what is
malformed or let one header become another (``header_map = dangerous``); then a request may mean one thing to
gunicorn and another to what stands before it, and that is how one guest's request becomes another's. A filter is not
told of them. But while gunicorn loads a pipeline, one of its objects that knows its settings waits for it among the
callers; and its ``start_response`` belongs to another, for a pipeline that was loaded before there was a gunicorn.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from metadata_wsgi.errors import ConfigError

STRICT: dict[str, Any] = {
    # Names with underscores are dropped: X_Forwarded_For would become X-Forwarded-For's second value.
    'header_map': ('drop', 'refuse'),
    'permit_obsolete_folding': (False,),
    'strip_header_spaces': (False,),
    'casefold_http_method': (False,),
    'permit_unconventional_http_method': (False,),
    'permit_unconventional_http_version': (False,),
    'proxy_protocol': ('off', False),
    'protocol': ('http',),
}
"""gunicorn's settings and the values that are strict, the one to have first."""

TAKEN = ('SCRIPT_NAME', 'PATH_INFO')
"""What gunicorn lets its forwarders say by default; neither is read here."""


def check() -> None:
    """Raise ConfigError if the gunicorn that loads us now is lenient; nothing where that is another server."""
    if found := leniences(_loading()):
        raise ConfigError(sentence(found))


def sentence(found: list[str]) -> str:
    """What is wrong with these leniences, and what would be right."""
    return (
        f'gunicorn mends malformed requests, by which a guest could pass for another: its settings have '
        f'{", ".join(found)}; set it so or leave it out'
    )


def calling(start_response: object) -> Any:
    """The settings of the gunicorn whose ``start_response`` this is; None for other servers, which cannot be asked."""
    return getattr(getattr(start_response, '__self__', None), 'cfg', None)


def leniences(settings: Any) -> list[str]:
    """Which of gunicorn's settings are lenient, as ``name = value instead of strict value``; [] for None."""
    if settings is None:
        return []
    found = [
        f'{name} = {getattr(settings, name)} instead of {strict[0]}'
        for name, strict in STRICT.items()
        if hasattr(settings, name) and getattr(settings, name) not in strict
    ]
    forwarded = {str(name).upper() for name in getattr(settings, 'forwarder_headers', ())} - {*TAKEN}
    if forwarded:
        found.append(f'forwarder_headers = {",".join(sorted(forwarded))} instead of {",".join(TAKEN)}')
    return found


def _loading() -> Any:
    """The settings of the gunicorn that waits for what we are called for, None where no gunicorn does."""
    if 'gunicorn.config' not in sys.modules:
        return None
    kind = sys.modules['gunicorn.config'].Config
    frame: FrameType | None = sys._getframe()
    while frame:
        settings = getattr(frame.f_locals.get('self'), 'cfg', None)
        if isinstance(settings, kind):
            return settings
        frame = frame.f_back
    return None
