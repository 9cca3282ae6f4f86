# SPDX-License-Identifier: Apache-2.0
import pytest

from metadata_wsgi.http import trace_context

TRACE, SPAN = '4bf92f3577b34da6a3ce929d0e0e4736', '00f067aa0ba902b7'


@pytest.mark.parametrize('flags', ['00', '01', 'ff'])
def test_a_traceparent_of_version_00_is_valid(flags):
    assert trace_context.is_valid(f'00-{TRACE}-{SPAN}-{flags}')


@pytest.mark.parametrize(
    'text',
    [
        '', f'00-{TRACE}-{SPAN}', f'01-{TRACE}-{SPAN}-01', f'ff-{TRACE}-{SPAN}-01', f'00-{"0" * 32}-{SPAN}-01',
        f'00-{TRACE}-{"0" * 16}-01', f'00-{TRACE.upper()}-{SPAN}-01', f'00-{TRACE}-{SPAN}-01\n', f'00-{TRACE}-{SPAN}-1',
        f'00-{TRACE}-{SPAN}-01-more', f'00-{TRACE}-{SPAN}-01,00-{TRACE}-{SPAN}-01', f' 00-{TRACE}-{SPAN}-01',
    ],
)  # fmt: skip
def test_any_other_traceparent_is_invalid(text):
    assert not trace_context.is_valid(text)
