# SPDX-License-Identifier: Apache-2.0
"""Whether the server that calls us reads HTTP as strictly as we count on.

Our own programs set gunicorn so. An operator's own ``gunicorn --paste`` may have switches on that mend what is
malformed or let one header become another (``header_map = dangerous``); then a request may mean one thing to
gunicorn and another to what stands before it, and that is how one guest's request becomes another's. A filter is not
told of them, but gunicorn's ``start_response`` belongs to an object that knows its settings.
"""

from __future__ import annotations

from typing import Any

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
"""gunicorn's settings and the values that are strict."""

TAKEN = frozenset({'SCRIPT_NAME', 'PATH_INFO'})
"""What gunicorn lets its forwarders say by default; neither is read here."""


def leniences(start_response: object) -> list[str]:
    """Which of gunicorn's settings are lenient, as ``name = value``; [] for other servers, which cannot be asked."""
    settings = getattr(getattr(start_response, '__self__', None), 'cfg', None)
    if settings is None:
        return []
    found = [
        f'{name} = {getattr(settings, name)}'
        for name, strict in STRICT.items()
        if hasattr(settings, name) and getattr(settings, name) not in strict
    ]
    forwarded = {str(name).upper() for name in getattr(settings, 'forwarder_headers', ())} - TAKEN
    if forwarded:
        found.append(f'forwarder_headers = {",".join(sorted(forwarded))}')
    return found
