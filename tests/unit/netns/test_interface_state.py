# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

from metadata_wsgi.netns import interface_state, namespaces
from tests.fakes import FakeClock

MAC = 'fa:16:3e:00:00:01'


def test_a_known_neighbour_is_found_although_the_thread_was_delayed(monkeypatch):
    """On a busy host: the thread reads the cache, waits for the processor until the timeout is over, and goes on."""
    clock = FakeClock()
    table = interface_state._KernelInterfaceTable('qrouter-1', None, OSError)
    reads = iter(['', MAC])

    def read_and_wait(interface):
        clock.sleep(2 * interface_state.NEIGHBOUR_TIMEOUT_S)
        return next(reads)

    monkeypatch.setattr(interface_state, 'time', SimpleNamespace(monotonic=clock, sleep=clock.sleep))
    monkeypatch.setattr(namespaces, 'run_in', lambda name, fn: None)
    monkeypatch.setattr(table, '_delete_neighbour', lambda interface: None)
    monkeypatch.setattr(table, '_cached_neighbour', read_and_wait)
    assert table.neighbour_mac(SimpleNamespace(index=7)) == MAC
