# SPDX-License-Identifier: Apache-2.0
"""The pending call that makes a traced program of CPython 3.11 hang, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import ctypes, sys, weakref
from tests import coverage_plugin
coverage_plugin.coverage_init(None, None)

class Greenlet: pass

items = weakref.WeakKeyDictionary()
alive = [Greenlet()]
items[alive[0]] = 'data'
api, function = ctypes.pythonapi, ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
api.Py_AddPendingCall.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
other = ctypes.cast(api.PyErr_CheckSignals, ctypes.c_void_p)

def end_thread(argument):
    api.Py_AddPendingCall(other, None)
    alive.clear()
    return 0

pending = function(end_thread)
sys.settrace(lambda *args: None)
api.Py_AddPendingCall(ctypes.cast(pending, ctypes.c_void_p), None)
for _ in range(10):
    (lambda: None)()
sys.settrace(None)
print(list(items.items()), len(items))
"""


def test_a_traced_program_does_not_hang_when_two_threads_with_greenlets_end():
    environ = {name: value for name, value in os.environ.items() if not name.startswith('COVERAGE')}
    environ['PYTHONPATH'] = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, '-c', PROGRAM], env=environ, capture_output=True, text=True, timeout=30)
    assert done.stdout == '[] 0\n', done.stderr
