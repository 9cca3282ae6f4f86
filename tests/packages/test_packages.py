# SPDX-License-Identifier: Apache-2.0
"""The deb on a fresh Debian: installed, used, upgraded under load, purged.

The commands and their output are written to ``transcript-SUITE.txt`` in METADATA_WSGI_PACKAGES.
"""

import json
import os
import re
import textwrap
from pathlib import Path

import pytest

from tests.e2e.conftest import eventually

from . import debian

pytestmark = [pytest.mark.packages, pytest.mark.netns]

ROUTERS = 3
PROGRAMS = ('metadata-wsgi', 'neutron-metadata-agent-wsgi', 'quantum-metadata-agent', 'quantum-ns-metadata-proxy')
KEEPER = 'metadata-wsgi-keeper'
UNITS = (KEEPER, 'quantum-ns-metadata-proxy', 'quantum-metadata-agent')
CONFIGURATION = """
[DEFAULT]
directory = static
check_services_at_start = false
metadata_proxy_shared_secret = of-this-test
[static]
inventory = /etc/metadata_wsgi/inventory.yaml
[metadata_app]
password_dir = /run/metadata_wsgi/passwords
"""
LIST_FILES = (
    "find / -xdev '(' -path /proc -o -path /sys -o -path /run -o -path /dev -o -path /tmp -o -path /root "
    "-o -path /var/lib/dpkg -o -path /var/log/journal ')' -prune -o -print"
)
OF_THE_SYSTEM = re.compile(r'/etc/(passwd|group|shadow|gshadow|subuid|subgid)-|/etc/\.pwd\.lock|/var/lib/systemd/.*')
"""Files that other programs write meanwhile: former versions of the lists of users, the state of systemd."""


def version_of(deb):
    return deb.name.split('_')[1].removesuffix('-1')


def router_id(number):
    return f'00000000-0000-4000-8000-{number:012d}'


def inventory():
    """A router for each number, each with an instance at 10.1.1.2 whose hostname has that number."""
    parts = {'routers': [], 'networks': [], 'ports': [], 'instances': []}
    for number in range(1, ROUTERS + 1):
        parts['routers'].append({'id': router_id(number), 'networks': [f'net-{number}']})
        parts['networks'].append({'id': f'net-{number}', 'subnets': [{'cidr': '10.1.1.0/24'}]})
        parts['ports'].append(
            {'id': f'port-{number}', 'network': f'net-{number}', 'mac': f'52:54:00:00:00:0{number}',
             'addresses': ['10.1.1.2'], 'instance': f'instance-{number}', 'project': 'project'}
        )  # fmt: skip
        parts['instances'].append({'id': f'instance-{number}', 'project': 'project', 'name': f'vm-{number}'})
    return json.dumps(parts)


class Transcript:
    """Runs commands in the machine, and writes them with their output to a file."""

    def __init__(self, machine, path):
        self._machine = machine
        self._file = path.open('w')

    def run(self, command):
        output = self._machine.sh(command)
        self._file.write(f'# {command}\n{output}\n')
        self._file.flush()
        return output

    def close(self):
        self._file.close()


@pytest.fixture
def transcript(machine, suite):
    made = Transcript(machine, Path(os.environ['METADATA_WSGI_PACKAGES']) / f'transcript-{suite}.txt')
    yield made
    made.close()


def files(listing):
    return {name for name in listing.splitlines() if not OF_THE_SYSTEM.fullmatch(name)}


def test_package_without_a_running_systemd_starts_nothing_and_its_purge_leaves_nothing(packages, fresh_debian):
    """As in the build of an image."""

    def sh(script):
        done = debian.run_in(fresh_debian, 'sh', '-c', f'exec 2>&1; {script}')
        assert done.returncode == 0, f'$ {script}\n{done.stdout}{done.stderr}'
        return done.stdout

    before = files(sh(LIST_FILES))
    former, this = packages
    sh(f'dpkg -i /root/{this.name}')
    assert sh('getent passwd metadata-wsgi').split(':')[5:] == ['/nonexistent', '/usr/sbin/nologin\n']
    assert sh('metadata-wsgi --version').strip() == f'metadata-wsgi {version_of(this)}'
    for program in PROGRAMS:
        assert 'usage: ' in sh(f'{program} --help')
    assert sh('systemctl is-enabled metadata-wsgi-keeper quantum-metadata-agent || true').split() == ['disabled'] * 2
    assert sh('dpkg -V metadata-wsgi') == ''
    sh(f'dpkg -i /root/{former.name}; dpkg -i /root/{this.name}')
    sh('dpkg --purge metadata-wsgi')
    assert files(sh(LIST_FILES)) - before == set()


def test_package_upgrade_under_load_loses_no_request_and_its_purge_leaves_nothing(machine, packages, transcript):
    former, this = packages
    before = files(machine.sh(LIST_FILES))
    transcript.run(f'dpkg -i /root/{former.name}')
    transcript.run('metadata-wsgi --version')
    assert 'active' not in machine.sh(f'systemctl is-active {" ".join(UNITS)} || true').split()
    table = transcript.run('metadata-wsgi lab')
    assert re.findall(r'vm-(red|blue|alone)$', table, re.MULTILINE) == ['red', 'blue', 'alone']

    start_services(machine, transcript)
    rules = [attach(machine, number) for number in range(1, ROUTERS + 1)]
    transcript.run('metadata-wsgi attached')
    keeper = machine.show_property(KEEPER, 'MainPID')
    for number in range(1, ROUTERS + 1):
        machine.sh(
            f'systemd-run --quiet --unit load-{number} ip netns exec guest-{number} '
            f'python3 /root/load.py vm-{number} /root/load-{number}.json'
        )
    wait_for_answers(machine, 30)
    transcript.run(f'dpkg -i /root/{this.name}')
    status = transcript.run(f'systemctl show --property StatusText {" ".join(UNITS)}')
    assert status.count(f'workers serve, version {version_of(this)}') == 2, status
    assert machine.show_property(KEEPER, 'MainPID') != keeper
    eventually(
        lambda: machine.show_property(KEEPER, 'StatusText').endswith('workers: 1 shared'),
        lambda: f'the former workers ended: {machine.text()}',
        within_s=60,
    )
    wait_for_answers(machine, 30)
    machine.sh('systemctl stop "load-*"')
    results = transcript.run(f'cd /root; for n in $(seq {ROUTERS}); do cat load-$n.json; echo; done')
    assert [json.loads(line)['failures'] for line in results.splitlines()] == [[]] * ROUTERS, machine.text()
    transcript.run('metadata-wsgi --version')
    transcript.run(f'systemctl is-active {" ".join(UNITS)}')
    transcript.run('metadata-wsgi attached')
    # The operator's change of the paste file is kept.
    assert 'signature metadata' in machine.sh('cat /etc/metadata_wsgi/api-paste.ini')

    transcript.run('metadata-wsgi detach --all')
    assert [machine.sh(save_rules(number)) for number in range(1, ROUTERS + 1)] == rules
    transcript.run('rm /etc/metadata_wsgi/metadata_agent.ini /etc/metadata_wsgi/inventory.yaml')
    transcript.run('dpkg --purge metadata-wsgi')
    left = files(transcript.run(LIST_FILES.replace('-print', '-name "*metadata*wsgi*" -print')))
    assert left == set()
    assert files(machine.sh(LIST_FILES)) - before == set()
    assert machine.sh('ls /run | grep metadata || true') == ''
    assert machine.sh("systemctl list-units --all 'metadata-wsgi*' 'quantum*' --plain --no-legend") == ''
    assert '/usr/lib/metadata-wsgi' not in machine.sh("cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep -v grep")


def start_services(machine, transcript):
    """Configure the agent, whose pipeline ends with the metadata app in place of Nova, and start the units."""
    etc = machine.root / 'etc' / 'metadata_wsgi'
    (machine.root / 'root' / 'load.py').write_text((Path(__file__).parent / 'load.py').read_text())
    (etc / 'metadata_agent.ini').write_text(textwrap.dedent(CONFIGURATION))
    (etc / 'inventory.yaml').write_text(inventory())
    paste = etc / 'api-paste.ini'
    paste.write_text(paste.read_text().replace('instance signature upstream', 'instance signature metadata', 1))
    machine.sh('cd /etc/metadata_wsgi; chgrp metadata-wsgi metadata_agent.ini; chmod 640 metadata_agent.ini')
    transcript.run(f'systemctl enable --now {" ".join(UNITS)}')
    eventually(
        lambda: machine.sh('metadata-wsgi attached', check=False), lambda: f'workers are connected: {machine.text()}'
    )


def attach(machine, number):
    """Make a router and its guest, and attach the router; returns the rules of its namespace before."""
    router, guest = f'qrouter-{router_id(number)}', f'guest-{number}'
    machine.sh(f"""set -e
        for name in {router} {guest}; do ip netns add $name; ip -n $name link set lo up; done
        ip -n {router} link add qr-{number} type veth peer name eth0 netns {guest}
        ip -n {router} address add 10.1.1.1/24 dev qr-{number}; ip -n {router} link set qr-{number} up
        ip -n {guest} address add 10.1.1.2/24 dev eth0; ip -n {guest} link set eth0 up
        ip -n {guest} route add default via 10.1.1.1""")
    rules = machine.sh(save_rules(number))
    machine.sh(f'metadata-wsgi attach --router-id {router_id(number)}')
    return rules


def save_rules(number):
    return f"ip netns exec qrouter-{router_id(number)} iptables-save | grep '^-A' || true"


def wait_for_answers(machine, count):
    """Wait until each guest has got this many more responses."""

    def answered():
        texts = [machine.sh(f'cat /root/load-{number}.json', check=False) for number in range(1, ROUTERS + 1)]
        return [json.loads(text)['answered'] if text.startswith('{') and text.endswith('}') else 0 for text in texts]

    targets = [number + count for number in answered()]
    eventually(
        lambda: all(now >= target for now, target in zip(answered(), targets, strict=True)),
        lambda: f'the guests get responses: {answered()} {machine.text()}',
        within_s=120,
    )
