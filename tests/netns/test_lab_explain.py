# SPDX-License-Identifier: Apache-2.0
"""The command that the lab prints for ``explain`` reaches the lab's own Nova."""

import re

import pytest

from tests.netns.test_lab import PROGRAM, machine  # noqa: F401 (a fixture)

pytestmark = pytest.mark.netns


def test_the_printed_explain_command_traces_a_request_in_the_lab(machine):  # noqa: F811
    done = machine(f'{PROGRAM} lab --keep')
    assert done.returncode == 0, done.stdout + done.stderr
    command = re.search(r'Trace its request: +(.*)', done.stdout)[1]
    traced = machine(command)
    assert traced.returncode == 0, traced.stdout + traced.stderr
    assert 'response      200 OK' in traced.stdout
    assert '"hostname": "vm-red"' in traced.stdout
    machine(f'{PROGRAM} lab down')
