# SPDX-License-Identifier: Apache-2.0
"""The examples of doc/fault_examples.md: each fault is made on a real node, and the page's own commands find it.

The page has the commands and their output in ``console`` blocks. Each command is run where its prompt says: on the
network node, or in an instance. The output must have the lines of the page in their order; times, process ids and dates
may differ. The repair between two blocks (a changed option and a reload) is done by the test, as the page says it.

``METADATA_WSGI_EXAMPLES=doc/fault_examples.md`` makes the tests write the output that they got into that page.
"""

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.conftest import eventually

from .conftest import opened_for_other_users
from .network_node import NETWORK, ROUTER, NetworkNode, NotPossible

pytestmark = [pytest.mark.netns, pytest.mark.not_traced]

DOC = Path(__file__).parents[2] / 'doc'
PAGE = DOC / 'fault_examples.md'
FILE = os.environ.get('METADATA_WSGI_EXAMPLES')
BLOCK = re.compile(r'```console\n(.*?)```\n', re.DOTALL)
PROMPT = re.compile(r'\w+@([\w-]+):~[#$] (.*)')
NODE = 'node'
# Not shown on the page: the bodies of Nova's error pages, and the fields of a query to Neutron.
LEFT_OUT = [
    (re.compile(r'<html>.*?</html>', re.DOTALL), '<html>...</html>'),
    (re.compile(r'(/ports\?\w+=[\w-]+)&\S+'), r'\1&...'),
]
# What differs from run to run.
VARIABLE = [
    (re.compile(r'\d+-\d\d-\d\d[ T]\d\d:\d\d:\d\d\S*( \d+)?'), 'TIME PID'),
    (re.compile(r'(?i)\bdate: .*'), 'date: TIME'),
    (re.compile(r'\b\d+(\.\d+)?( (ms|s|milliseconds)\b)'), r'N\2'),
    (re.compile(r'pid \d+'), 'pid N'),
    (re.compile(r'workers?: \d+(, \d+)*'), 'workers: N'),
    (re.compile(r'req-[0-9a-f-]{36}'), 'REQUEST'),
    (re.compile(r'\s+'), ' '),
]


@dataclass(frozen=True)
class Command:
    """A command of the page. ``host`` is NODE or an instance; ``output`` has the lines below it."""

    host: str
    text: str
    output: list[str]


def commands(block):
    """The commands of a ``console`` block."""
    found = []
    for line in block.splitlines():
        prompt = PROMPT.fullmatch(line)
        if prompt:
            found.append(Command(prompt[1], prompt[2], []))
        else:
            found[-1].output.append(line)
    return found


def normalized(line):
    for pattern, replacement in VARIABLE:
        line = pattern.sub(replacement, line)
    return line.strip()


def shortened(output):
    """The lines of a command's output as the page shows them."""
    for pattern, replacement in LEFT_OUT:
        output = pattern.sub(replacement, output)
    return [line.rstrip() for line in output.splitlines()]


def sections():
    """Heading -> its ``console`` blocks."""
    parts = re.split(r'^## (.*)\n', PAGE.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], map(BLOCK.findall, parts[2::2]), strict=True))


@pytest.fixture(scope='module')
def node():
    """One node for all examples: each test repairs what it broke."""
    with tempfile.TemporaryDirectory(prefix='metadata-wsgi-') as made:
        os.chmod(made, 0o755)
        try:
            node = NetworkNode(Path(made), opened_for_other_users(Path(made)))
        except NotPossible as reason:
            pytest.skip(f'no node can be made here: {reason}')
        try:
            node.set_up()
            yield node
        finally:
            node.close()


@pytest.fixture
def replay(node):
    """A function: runs the commands of a block and compares their output with the page. The agent's log is empty."""
    node.empty_log()

    def run(block):
        written, missing = [], []
        for command in commands(block):
            host = '' if command.host == NODE else command.host
            if '--failures' in command.text:
                # A worker publishes its failures once a second.
                eventually(lambda text=command.text: 'REASON' in node.run(text).stdout, node.text)
            output = shortened(node.run(command.text, host).stdout)
            user, sign = ('root', '#') if command.host == NODE else ('ubuntu', '$')
            written += [f'{user}@{command.host}:~{sign} {command.text}', *output]
            actual = map(normalized, output)
            # The iterator goes on behind each line that was found: the order counts.
            missing += [(command.text, line) for line in map(normalized, command.output) if line not in actual]
        text = '\n'.join(written)
        if FILE:
            page = Path(FILE)
            page.write_text(page.read_text().replace(f'```console\n{block}```', f'```console\n{text}\n```'))
        else:
            assert missing == [], text

    return run


@pytest.mark.parametrize(
    ('section', 'option'),
    [
        ('The shared secrets differ', {'metadata_proxy_shared_secret': 'another-secret'}),
        ('The role of the agent sees no ports', {'admin_user': 'reader'}),
    ],
    ids=['wrong shared secret', 'role that sees no ports'],
)
def test_wrong_option_is_found_by_the_commands_of_the_page(node, replay, section, option):
    search, repaired = sections()[section]
    node.configure(**option)
    node.reload_agent()
    replay(search)
    node.configure()
    node.reload_agent()
    replay(repaired)


def test_dhcp_namespace_without_its_address_is_found_by_the_commands_of_the_page(node, replay):
    search, repair = sections()['A DHCP namespace has lost its address']
    lost = node.run(f'ip -n qdhcp-{NETWORK} address del 169.254.169.254/16 dev tap8e2b6c4d-1f')
    assert lost.returncode == 0, lost.stdout
    replay(search)
    replay(repair)


def commands_as_in_the_steps():
    """The commands of the examples, with ids and addresses replaced by the words of the troubleshooting page."""
    used = [command.text for blocks in sections().values() for block in blocks for command in commands(block)]
    return {re.sub(r'[0-9a-f]{8}-[0-9a-f-]{27}', 'ID', text).replace(' 10.1.1.2', ' ADDRESS') for text in used}


def test_each_other_command_of_a_troubleshooting_step_succeeds_on_a_healthy_node(node):
    """Those of this package and of curl and ss; not of clients of OpenStack, nor of cloud-init in an instance."""
    text = (DOC / 'troubleshooting.md').read_text()
    steps = set(re.findall(r'^    ((?:metadata-wsgi|curl|ip netns exec \S+ curl|ss) .*)', text, re.MULTILINE))
    others = steps - commands_as_in_the_steps()
    assert len(others) > 4
    failed = {}
    for step in sorted(others):
        id_ = NETWORK if 'qdhcp-' in step else ROUTER
        host = 'vm-web' if step.startswith('curl') else ''
        done = node.run(step.replace('ID', id_).replace('ADDRESS', '10.1.1.2'), host)
        # This instance has no user-data.
        if done.returncode != (1 if '/user_data' in step else 0):
            failed[step] = done.stdout
    assert failed == {}


def test_each_command_of_an_example_is_a_step_of_the_troubleshooting_page():
    steps = (DOC / 'troubleshooting.md').read_text()
    used = commands_as_in_the_steps()
    assert len(used) > 4
    assert [text for text in used if text not in steps] == []
