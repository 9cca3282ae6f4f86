# SPDX-License-Identifier: Apache-2.0
"""Hostile requests that nobody wrote down: put together by hypothesis, 2,000 of them, or 20,000 in the nightly run.

A request is a line, headers, a framing and a body, each taken from what is known to confuse servers or
made up; bytes of it may be changed afterwards. What must hold for all of them: Nova hears the sender and nobody else;
never the request that was hidden in the body; never more requests than were sent; every answer that is not
Nova's is a refusal.
"""

import os
from collections import Counter

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from metadata_wsgi.http import header_names
from tests.wire.cases import HOPS, REFUSALS, WHO
from tests.wire.conftest import is_the_sender

REQUESTS = 20_000 if os.environ.get('METADATA_WSGI_NIGHTLY') else 2_000

HIDDEN = b'GET /smuggled HTTP/1.1\r\nHost: x\r\n%bX-Instance-ID: instance-b\r\n\r\n'
BLANKS = ('', ' ', '\t', '\x0b', '\x0c', '\xa0', '\0', '\r', '\n', '\r\n ', '\r\n\t', ',', ';')


def mostly(usual, odd):
    """``usual``, one time in eight ``odd``: of a request with many faults only the first one is tried."""
    return st.integers(0, 7).flatmap(lambda number: usual if number else odd)


blank = mostly(st.sampled_from(['', ' ', '\t']), st.sampled_from(BLANKS))
naming = st.sampled_from(
    [*(header_names.router_id(prefix) for prefix in header_names.PREFIXES), *(header_names.network_id(prefix) for prefix in header_names.PREFIXES),
     header_names.FORWARDED_FOR, header_names.INSTANCE_ID, header_names.TENANT_ID, header_names.SIGNATURE, 'x-metadata-provider',
     'x-metadata-provider-signature', 'forwarded', 'x-real-ip', 'host', 'x-original-url', 'x-http-method-override']
)  # fmt: skip
values = st.sampled_from(['router-b', 'network-c', 'instance-b', 'project-b', '10.1.1.2', '127.0.0.1', '', 'x, y', '*'])


@st.composite
def spelt(draw, names):
    """A header's name, as somebody may write it."""
    name = draw(names)
    form = draw(st.sampled_from([str, str.upper, str.title, lambda text: text.replace('-', '_'), str.swapcase]))
    name = form(name)
    if draw(mostly(st.just(True), st.just(False))):
        return name
    place = draw(st.integers(0, len(name)))
    return name[:place] + draw(st.sampled_from([*BLANKS, '_', '-', '.', '\xdf', '%2d', '\xad'])) + name[place:]


@st.composite
def identity(draw):
    """Headers that name somebody, or name such headers."""
    name = draw(spelt(naming))
    if draw(st.integers(0, 4)) == 0:
        return f'Connection: {name}, close'
    return f'{name}{draw(blank)}:{draw(blank)} {draw(values)}{draw(blank)}'


LENGTHS = [
    '%d',
    '+%d',
    '-%d',
    '0%d',
    '%d,%d',
    '%d, %d',
    '0x%x',
    '%d.0',
    '%d_0',
    '%d ',
    ' %d',
    '%d\0',
    '%d;',
    '"%d"',
    '',
]
CODINGS = [
    *('chunked', 'Chunked', 'identity', 'xchunked', 'chunked, identity', 'identity, chunked', 'chunked, chunked', ''),
    *(' chunked', 'chunked\0', '\x0bchunked', 'chunked;q=1', 'gzip, chunked', 'chunked, gzip', '"chunked"'),
]
SIZES = [
    '%x',
    '%X',
    '0%x',
    '+%x',
    '-%x',
    '0x%x',
    '%x ',
    ' %x',
    '%x;a',
    '%x;a="b"',
    '%x;a\n',
    '%x;\r',
    '%x\0',
    '%x_0',
    '',
]
end = mostly(st.just('\r\n'), st.sampled_from(['\n', '\r', '\r\r\n', '']))


def filled(form, number):
    """``form`` with ``number`` in each of its places."""
    return form % ((number,) * form.count('%'))


@st.composite
def framing(draw, hidden):
    """(headers, body): a body that hides a request, under one or two framings that may contradict each other."""
    headers = []
    body = hidden
    for kind in draw(
        st.lists(
            st.sampled_from(['length', 'short length', 'chunks', 'none']),
            min_size=1,
            max_size=draw(mostly(st.just(1), st.just(3))),
        )
    ):
        name = draw(spelt(st.just('content-length' if 'length' in kind else 'transfer-encoding')))
        if kind == 'length':
            headers.append(f'{name}: {filled(draw(mostly(st.just("%d"), st.sampled_from(LENGTHS))), len(body))}')
        elif kind == 'short length':
            headers.append(f'{name}: {draw(st.sampled_from(["0", "00", "-0", "1", "4", ""]))}')
        elif kind == 'chunks':
            headers.append(f'{name}:{draw(blank)} {draw(mostly(st.just("chunked"), st.sampled_from(CODINGS)))}')
            size = filled(draw(mostly(st.just('%x'), st.sampled_from(SIZES))), len(body)) + draw(end)
            odd = ['0\n\n', '00\r\n\r\n', '0\r\nX-Instance-ID: instance-b\r\n\r\n', '0\r\nHost: x\r\n\r\n', '']
            last = draw(mostly(st.just('0\r\n\r\n'), st.sampled_from(odd)))
            whole = [size.encode('latin-1') + body + draw(end).encode() + last.encode()]
            whole.append(last.encode() + body)
            body = draw(st.sampled_from(whole))
    return headers, body


@st.composite
def request(draw, hop):
    """The bytes of one request at ``hop``."""
    who = WHO if hop == 'agent' else ''
    headers, body = draw(framing(HIDDEN % who.encode()))
    methods = st.sampled_from(['get', 'GE', 'G\0T', 'CONNECT', 'OPTIONS', 'HEAD', 'PUT', 'DELETE'])
    method = draw(mostly(st.sampled_from(['GET', 'POST']), methods))
    targets = st.sampled_from(['http://x/first', '//first', '/first?a=b', '/first\0', '*', 'x:1', '/\xff', ''])
    target = draw(mostly(st.just('/first'), targets))
    versions = st.sampled_from(['HTTP/1.0', 'HTTP/1.2', 'HTTP/2', '', 'http/1.1'])
    version = draw(mostly(st.just('HTTP/1.1'), versions))
    headers = draw(st.permutations([*headers, *draw(st.lists(identity(), max_size=4))]))
    ends = ['\r\n'] * (len(headers) + 1)
    if draw(mostly(st.just(False), st.just(True))):
        ends[draw(st.integers(0, len(headers)))] = draw(end)
    lines = [f'{method} {target} {version}', *headers]
    head = ''.join(line + end for line, end in zip(lines, ends, strict=True)) + who + '\r\n'
    data = head.encode('latin-1') + body
    for _ in range(draw(mostly(st.just(0), st.integers(1, 3)))):
        place = draw(st.integers(0, len(data) - 1))
        changed = data[:place] + draw(st.binary(max_size=2)) + data[place + draw(st.integers(0, 2)) :]
        # What the namespace proxy says is not the guest's to change.
        if changed.count(WHO.encode()) == data.count(WHO.encode()):
            data = changed
    return data


def sent(data):
    """How many requests there can be in ``data`` at most, by whoever reads it: each names a version."""
    return max(1, data.upper().count(b'HTTP/'))


def may_be_seen(data):
    """Whether a strict reader takes the hidden one for a request of its own: no framing covers it (RFC 9112, 6.3)."""
    head, _, body = data.partition(b'\r\n\r\n')
    names = [line.partition(b':')[0].lower() for line in head.split(b'\r\n')[1:]]
    if b'transfer-encoding' in names:
        # Chunks that end before it, and are well-formed: it is pipelined.
        return names.count(b'content-length') == 0 and body.startswith((b'0\r\n', b'00\r\n'))
    lengths = [line.partition(b':')[2].strip(b' \t') for line in head.split(b'\r\n')[1:]
               if line.partition(b':')[0].lower() == b'content-length']  # fmt: skip
    if not lengths:
        return True
    return len(lengths) == 1 and lengths[0].isdigit() and int(lengths[0]) <= body.find(b'GET /smuggled')


def test_whatever_is_sent_nova_hears_the_sender(hops, capsys):
    answered, heard_at = Counter(), Counter()

    @seed(2012)
    @settings(max_examples=REQUESTS, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(HOPS).flatmap(lambda hop: st.tuples(st.just(hop), request(hop))))
    def one(drawn):
        hop, data = drawn
        status, said = hops.send(hop, data)
        heard = hops.heard()
        for each in heard:
            is_the_sender(each)
        assert len(heard) <= sent(data)
        if any('smuggled' in each.target for each in heard):
            assert may_be_seen(data)
        assert status in (None, 200, *REFUSALS), said
        assert (status == 200) == bool(heard), said
        answered[f'{hop} {status or "closed"}'] += 1
        heard_at[hop] += len(heard)

    one()
    with capsys.disabled():
        print(f'\n{sum(answered.values())} hostile requests: {dict(sorted(answered.items()))}')
        print(f'Nova heard {sum(heard_at.values())} of them, of the sender each: {dict(sorted(heard_at.items()))}')
    # Else it would have tried nothing.
    assert answered['proxy 200'] > REQUESTS / 20
    assert answered['proxy 400'] > REQUESTS / 20
