# SPDX-License-Identifier: Apache-2.0
"""Many routers in one set of processes: none costs a process, and attaching one disturbs no other.

50 routers; 1,000 where METADATA_WSGI_NIGHTLY is set. The figures are printed (pytest -s) and not judged.
"""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from metadata_wsgi.keeper.attachments_client import AttachmentsClient
from metadata_wsgi.netns import namespaces
from metadata_wsgi.netns.target import AttachTarget
from tests.cloud import Cloud
from tests.e2e.conftest import eventually

from .keeper_host import KeeperHost, RequestLoad, get_instance_id

pytestmark = [pytest.mark.netns, pytest.mark.not_traced]

MANY = 50 if os.environ.get('METADATA_WSGI_NIGHTLY', '') in ('', '0') else 1000
TENTH = MANY // 10
PORT = 9697


def batch(*commands):
    subprocess.run(['ip', '-b', '-'], input='\n'.join(commands) + '\n', text=True, check=True)


def inventory(ids):
    """An instance at 127.0.0.1 behind each: requests are sent inside the router's namespace, so no link is needed."""
    return yaml.safe_dump(
        {
            'routers': [{'id': id_, 'networks': [f'net-{id_}']} for id_ in ids],
            'networks': [{'id': f'net-{id_}'} for id_ in ids],
            'ports': [
                {
                    'id': f'port-{id_}',
                    'network': f'net-{id_}',
                    'mac': 'fa:16:3e:00:00:01',
                    'addresses': ['127.0.0.1'],
                    'instance': f'vm-{id_}',
                    'project': 'p',
                }
                for id_ in ids
            ],
            'instances': [{'id': f'vm-{id_}', 'project': 'p', 'name': id_} for id_ in ids],
        }
    )


@pytest.fixture
def routers():
    """Ids of MANY routers and a tenth more, each with a namespace."""
    ids = [f'many-{os.getpid()}-{number}' for number in range(MANY + TENTH)]
    try:
        batch(*(f'netns add qrouter-{id_}' for id_ in ids))
        for id_ in ids:
            subprocess.run(['ip', '-n', f'qrouter-{id_}', 'link', 'set', 'lo', 'up'], check=True)
        yield ids
    finally:
        batch(*(f'netns delete {name}' for name in namespaces.names() if name.removeprefix('qrouter-') in ids))


@pytest.fixture
def host(directory, routers):
    with Cloud(directory) as cloud:
        cloud._inventory.write_text(inventory(routers))
        cloud.nova.instances = {f'vm-{id_}': 'p' for id_ in routers}
        made = KeeperHost(directory, cloud)
        try:
            yield made.start()
        finally:
            made.close()


def costs(host):
    """What keeper, proxy and agent use now: processes, descriptors, kilobytes (PSS)."""
    pids = []
    for program in (host.keeper, host.proxy, host.agent):
        pids += [program.pid, *program.workers()]
    kilobytes = 0
    for pid in pids:
        for line in Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines():
            kilobytes += int(line.split()[1]) if line.startswith('Pss:') else 0
    return {
        'processes': len(pids),
        'descriptors': sum(len(os.listdir(f'/proc/{pid}/fd')) for pid in pids),
        'kb': kilobytes,
    }


@pytest.mark.parametrize('mode', ['shared', 'one_hop'])
def test_many_routers_share_one_set_of_processes(host, routers, mode, tmp_path):
    keeper = AttachmentsClient(str(host.cloud.state_path))
    first, later = routers[:MANY], routers[MANY:]
    before = costs(host)
    begun_at = time.monotonic()
    for id_ in first:
        keeper.attach(AttachTarget.of('router', id_), mode, PORT, [''])
    took_s = time.monotonic() - begun_at
    assert [namespaces.run_in(f'qrouter-{id_}', lambda: get_instance_id('127.0.0.1', PORT)) for id_ in first] == [
        f'vm-{id_}' for id_ in first
    ]
    after = costs(host)
    print(json.dumps({'mode': mode, 'routers': MANY, 'attach_s': round(took_s, 2), 'before': before, 'after': after}))
    assert after['processes'] == before['processes']
    # One descriptor in the keeper and one in the worker that serves it.
    assert after['descriptors'] - before['descriptors'] <= 2 * MANY + 20

    gone, staying = first[:TENTH], first[TENTH:]
    load = RequestLoad([(f'qrouter-{id_}', f'vm-{id_}') for id_ in staying[:4]], host='127.0.0.1', port=PORT)
    try:
        load.more()
        for one, another in zip(gone, later, strict=True):
            assert keeper.detach(AttachTarget.of('router', one)) is True
            assert keeper.attach(AttachTarget.of('router', another), mode, PORT, ['']) is True
        load.more()
        for id_ in gone[:5]:
            # The worker hears of it a moment after the keeper.
            eventually(lambda id_=id_: _refuses(f'qrouter-{id_}'), f'{id_} is not served any more')
        for id_ in later:
            assert namespaces.run_in(f'qrouter-{id_}', lambda: get_instance_id('127.0.0.1', PORT)) == f'vm-{id_}'
    finally:
        load.stop()
    assert load.failures == [], host.text()
    assert len(keeper.entries()) == MANY


def test_many_routers_are_attached_and_detached_by_one_command(host, routers, tmp_path):
    listed = tmp_path / 'list'
    listed.write_text(''.join(f'router {id_}\n' for id_ in routers[:MANY]))
    begun_at = time.monotonic()
    assert host.attach('shared', '--file', str(listed)).count('is attached') == MANY
    print(json.dumps({'routers': MANY, 'attach_with_rules_s': round(time.monotonic() - begun_at, 2)}))
    sample = (routers[0], routers[MANY // 2], routers[MANY - 1])
    assert [namespaces.run_in(f'qrouter-{id_}', lambda: get_instance_id('127.0.0.1', PORT)) for id_ in sample] == [
        f'vm-{id_}' for id_ in sample
    ]
    code, out, _ = host.metadata_wsgi('detach', '--file', str(listed))
    assert (code, out.count('is detached')) == (0, MANY)
    assert host.attachments.entries() == []


def _refuses(namespace):
    try:
        namespaces.run_in(namespace, lambda: get_instance_id('127.0.0.1', PORT))
    except OSError:
        return True
    return False
