# SPDX-License-Identifier: Apache-2.0
"""The table of packages in ``doc/architecture.md`` is checked against the imports."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from metadata_wsgi.pipeline import environ_keys

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / 'metadata_wsgi'
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob('*.py'))
# The distribution's name in the table -> what is imported.
LIBRARIES = {
    'oslo.config': 'oslo_config', 'oslo.log': 'oslo_log', 'PyYAML': 'yaml', 'PasteDeploy': 'paste',
    'prometheus-client': 'prometheus_client', 'inotify-simple': 'inotify_simple', '-': '', 'stdlib': '',
}  # fmt: skip


BASIC = {'errors', 'instruments', 'limits', 'throttle', 'deadline', 'safe_files'}
"""May be imported everywhere."""


def table():
    """package -> (packages it may import, libraries it may import)."""
    rooms = {}
    for line in (ROOT / 'doc' / 'architecture.md').read_text().splitlines():
        cells = [cell.strip() for cell in line.split('|')[1:-1]]
        if len(cells) != 4 or not cells[0].startswith('`'):
            continue
        words = re.sub(r'\([^)]*\)', ' ', cells[2]).replace('`', '')
        may = {word.strip().removesuffix('/*') for word in re.split('[,;]', words)} - {'', 'nothing'}
        libraries = {LIBRARIES.get(name, name) for name in re.split(r'[,;]\s*', re.sub(r'\([^)]*\)', '', cells[3]))}
        for room in re.findall('`([^`]+)`', cells[0]):
            rooms[room.removesuffix('/*')] = (may, {name.strip() for name in libraries} - {''})
    return rooms


def room_of(module):
    """``filters`` for filters/instance.py, ``limits`` for limits.py, '' for the package itself."""
    return module.parts[0].removesuffix('.py').replace('__init__', '') if len(module.parts) == 1 else module.parts[0]


def imports(module):
    """(full names imported from our package, top-level names of other libraries)."""
    ours, others = set(), set()
    for node in ast.walk(ast.parse((PACKAGE / module).read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{module}: relative import'
            names = [f'{node.module}.{alias.name}' for alias in node.names]
        for name in names:
            top, _, rest = name.partition('.')
            if top == 'metadata_wsgi':
                ours.add(rest)
            elif top not in sys.stdlib_module_names and top != '_typeshed':
                others.add(top)
    return ours, others


ROOMS = table()


def test_the_table_was_understood():
    assert ROOMS['errors'] == (set(), set())
    assert ROOMS['pipeline'] == ({'config', 'http'}, {'paste'})
    assert {'filters', 'lookup', 'cli', 'netns'} <= set(ROOMS)


def test_every_room_is_in_the_table():
    assert {room_of(module) for module in MODULES} - {''} - set(ROOMS) == set()


@pytest.mark.parametrize('module', MODULES, ids=str)
def test_a_room_imports_only_what_the_table_allows(module):
    room = room_of(module)
    if room == '':
        assert imports(module) == (set(), set())
        return
    may, libraries = ROOMS[room]
    if 'anything' in may:
        return
    ours, others = imports(module)
    allowed = may | BASIC | {room}
    assert {name for name in ours if name.split('.')[0] not in allowed} == set()
    assert others - libraries == set()


def test_no_filter_imports_another():
    for module in MODULES:
        if module.parts[0] == 'filters':
            assert not {name for name in imports(module)[0] if name.split('.')[0] == 'filters'}


def test_only_instance_and_its_cache_know_a_directory():
    knows = {
        str(module)
        for module in MODULES
        if module.parts[0] == 'filters' and 'lookup' in {name.split('.')[0] for name in imports(module)[0]}
    }
    assert knows == {'filters/instance.py', 'filters/optional/lookup_cache.py'}


def test_nobody_imports_the_programs():
    for module in MODULES:
        if room_of(module) != 'cli':
            assert not {name for name in imports(module)[0] if name.split('.')[0] == 'cli'}


def test_at_most_eight_modules_stand_at_the_top_of_the_package():
    assert len([module for module in MODULES if len(module.parts) == 1]) <= 8


def test_the_basic_modules_import_nothing_of_ours():
    for name in BASIC:
        assert imports(Path(name + '.py')) == (set(), set())


def test_a_key_of_the_environ_is_spelt_in_one_place():
    """Only ``environ_keys`` spells it. Other modules import the constant."""
    keys = {value for name, value in vars(environ_keys).items() if name.isupper() and isinstance(value, str)}
    assert 'metadata_wsgi.source' in keys
    for module in MODULES:
        if str(module) == 'pipeline/environ_keys.py':
            continue
        tree = ast.parse((PACKAGE / module).read_text())
        spelt = {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert not spelt & keys, module


def test_importing_any_module_does_nothing():
    """No option in oslo's global CONF, no thread, no child, no file handle left, no gevent patch."""
    names = ['.'.join(('metadata_wsgi', *module.with_suffix('').parts)).removesuffix('.__init__') for module in MODULES]
    code = (
        'import importlib, os, sys, threading, warnings\n'
        'warnings.simplefilter("ignore")\n'
        'environ, fds = dict(os.environ), set(os.listdir("/proc/self/fd"))\n'
        f'for name in {names!r}: importlib.import_module(name)\n'
        'from oslo_config import cfg\n'
        'ours = set(cfg.CONF) - {"config_file", "config_dir", "config_source", "shell_completion"}\n'
        'import gevent.monkey\n'
        'left = set(os.listdir("/proc/self/fd")) - fds\n'
        'children = open(f"/proc/self/task/{os.getpid()}/children").read()\n'
        'print(ours, threading.active_count(), dict(os.environ) == environ, gevent.monkey.saved, left, children)\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == 'set() 1 True {} set()'


@pytest.mark.parametrize(
    ('module', 'libraries'),
    [
        ('metadata_wsgi.cli.keeper_process', {'argparse', 'oslo_config', 'pyroute2', 'webob', 'gevent', 'gunicorn'}),
        (
            'metadata_wsgi.cli.namespace_proxy',
            {'oslo_config', 'pyroute2', 'webob', 'keystoneauth1', 'requests', 'yaml'},
        ),
        (
            'metadata_wsgi.namespace_proxy.app',
            {'oslo_config', 'pyroute2', 'webob', 'keystoneauth1', 'requests', 'yaml'},
        ),
    ],
)
def test_the_memory_of_keeper_and_namespace_proxies_has_no_library_that_they_do_not_use(module, libraries):
    """These programs run on each host, even with few routers. Each of these libraries costs megabytes."""
    # With coverage, gevent is imported before.
    code = f'import sys; before = set(sys.modules); import {module}; print(*set(sys.modules) - before)'
    code = f'import warnings; warnings.simplefilter("ignore"); {code}'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert libraries.isdisjoint(done.stdout.split())
