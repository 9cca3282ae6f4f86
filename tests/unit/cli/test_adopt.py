# SPDX-License-Identifier: Apache-2.0
"""``metadata-wsgi adopt`` and ``give-back``: the summary and the exit code if some proxies cannot be converted."""

import argparse
import errno

import pytest

from metadata_wsgi.cli import adopt, root_check
from metadata_wsgi.errors import NetnsError
from metadata_wsgi.netns import haproxy


@pytest.mark.parametrize('error', [OSError(errno.EROFS, 'Read-only file system'), NetnsError('no worker')])
def test_the_other_proxies_are_converted_if_one_fails(monkeypatch, capsys, error):
    proxies = [haproxy.Proxy(id_, 4711, '', is_haproxy=True) for id_ in ('a', 'b', 'c')]
    monkeypatch.setattr(root_check, 'require_root', lambda: None)
    monkeypatch.setattr(haproxy, 'running', lambda state_path: proxies)
    converted = []

    def convert(conversion, proxy, state_path):
        if proxy.id == 'b':
            raise error
        converted.append(proxy.id)
        return True

    args = argparse.Namespace(all=True, id=[], state_path='/x', convert=convert)
    assert adopt.run(args) == 1
    assert converted == ['a', 'c']
    out, err = capsys.readouterr()
    assert out == '2 converted, 0 already converted, 1 failed\n'
    assert f'b: {error}' in err
