# SPDX-License-Identifier: Apache-2.0
"""The table in the docstring of ``environ_keys`` against the filters."""

import importlib
import re
from pathlib import Path

import pytest

from metadata_wsgi import filters
from metadata_wsgi.nova_proxy.upstream import UpstreamApp
from metadata_wsgi.pipeline import environ_keys, order

KEYS = {value for name, value in vars(environ_keys).items() if name.isupper() and isinstance(value, str)}


def rows():
    """key -> the names of filters in its row."""
    found = {}
    for row in re.split(r'\n(?=``metadata_wsgi\.)', environ_keys.__doc__)[1:]:
        key, *names = re.findall('``([^`]+)``', row.partition('\n====')[0])
        found[key] = set(names)
    return found


def classes():
    directory = Path(filters.__file__).parent
    for path in sorted(directory.rglob('*.py')):
        module = importlib.import_module('.'.join(('metadata_wsgi.filters', *path.relative_to(directory).parts))[:-3])
        yield from (kind for kind in vars(module).values() if getattr(kind, '__module__', '') == module.__name__)
    yield UpstreamApp


def test_the_table_has_every_key():
    assert set(rows()) == KEYS


@pytest.mark.parametrize('kind', [kind for kind in classes() if hasattr(kind, 'REQUIRES')], ids=order.name)
def test_the_table_names_each_filter_that_reads_or_writes_a_key(kind):
    for key in kind.REQUIRES | kind.PROVIDES:
        assert order.name(kind) in rows()[key], key
