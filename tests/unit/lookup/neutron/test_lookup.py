# SPDX-License-Identifier: Apache-2.0
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import IncompleteResult, InstanceLookupError, LookupUnavailable
from metadata_wsgi.lookup.neutron.auth import NEVER_S
from metadata_wsgi.lookup.neutron.lookup import SAMPLE_SIZE, VISIBILITY_CHECK_INTERVAL_S, NeutronLookup
from metadata_wsgi.pipeline.environ_keys import Instance, Source
from tests.fakes import FakeClock

from .fakes import FakeApi, FakeAuthenticator, port, token

BEHIND_ROUTER = Source('10.1.1.2', router_id='router-1')
ON_NETWORK = Source('10.1.1.2', network_id='network-1')
INTERFACE = {
    'id': 'interface-1', 'device_id': 'router-1', 'network_id': 'network-1',
    'mac_address': 'fa:16:3e:00:00:fe', 'fixed_ips': [{'ip_address': '10.1.1.1'}],
}  # fmt: skip
FOREIGN = {'id': 'p', 'project_id': 'another'}
DHCP = {**INTERFACE, 'id': 'dhcp-1', 'device_id': 'dhcp'}
OWN = {'id': 'p', 'project_id': 'service-project'}
ONE = Instance('instance-1', 'project-1', 'port-1')


class Fixture:
    """A lookup with a fake API and a fake clock."""

    def __init__(self, *outcomes, roles=('service',), project_id='service-project', **fields):
        self.clock = FakeClock()
        self.auth = FakeAuthenticator(token(roles=roles, project_id=project_id, **fields))
        self.api = FakeApi(*outcomes, auth=self.auth)
        self.lookup = NeutronLookup(self.api, clock=self.clock)

    def find(self, source=BEHIND_ROUTER):
        return self.lookup.find(source, Deadline.after(9, self.clock))

    def probe(self):
        return self.lookup.probe(Deadline.after(9, self.clock))

    def filters(self):
        """The names of each query's filters."""
        return [{name for name, _ in query} - {'fields', 'sort_key', 'sort_dir'} for query in self.api.queries]

    def probed(self, *outcomes):
        """Neutron has shown ports of other projects; from now on it returns ``outcomes``."""
        self.api.outcomes = [[FOREIGN]]
        self.probe()
        self.api.queries.clear()
        self.api.outcomes = list(outcomes)
        return self


def test_behind_a_router_two_queries_find_the_instance():
    fixture = Fixture([INTERFACE], [port()])
    assert fixture.find() == (ONE,)
    assert fixture.filters() == [{'device_id', 'device_owner'}, {'network_id', 'fixed_ips'}]


TWO_INTERFACES = [
    {**INTERFACE, 'id': 'aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa'},
    {**INTERFACE, 'id': 'bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb', 'network_id': 'network-2'},
]


@pytest.mark.parametrize(
    ('interface', 'networks'),
    [
        ('qr-aaaaaaaa-aa', ['network-1']),
        ('qr-bbbbbbbb-bb', ['network-2']),
        (None, ['network-1', 'network-2']),
        ('qr-cccccccc-cc', None),
    ],
)
def test_a_link_local_address_is_searched_on_the_network_of_its_interface(interface, networks):
    """With port security off an instance can take the address of another tenant's instance on another network."""
    searches = [[], TWO_INTERFACES, TWO_INTERFACES] if networks else [TWO_INTERFACES]
    fixture = Fixture().probed(TWO_INTERFACES, *searches)
    assert fixture.find(Source('fe80::f816:3eff:fe00:1', router_id='router-1', interface=interface)) == ()
    queried = [[value for name, value in query if name == 'network_id'] for query in fixture.api.queries]
    assert queried == ([[], networks, [], networks] if networks else [[], []])


def test_on_a_network_one_query_finds_the_instance():
    fixture = Fixture([port()])
    assert fixture.find(ON_NETWORK) == (ONE,)
    assert fixture.filters() == [{'network_id', 'fixed_ips'}]


def test_behind_a_router_without_networks_there_is_no_query_for_the_address():
    fixture = Fixture().probed([])
    with pytest.raises(IncompleteResult, match='shows no port of router router-1, which sent a request'):
        fixture.find()
    assert fixture.filters() == [{'device_id', 'device_owner'}] * 2


def test_an_empty_result_is_accepted_after_a_visibility_check():
    fixture = Fixture().probed([], [DHCP], [DHCP])
    assert fixture.find(ON_NETWORK) == ()
    searches = [{'network_id', 'fixed_ips'}, {'network_id', 'device_owner'}, {'network_id', 'fixed_ips'}]
    assert fixture.filters() == searches
    fixture.api.outcomes = [[], [FOREIGN], [DHCP], [DHCP]]
    fixture.clock.now_s += VISIBILITY_CHECK_INTERVAL_S
    assert fixture.find(ON_NETWORK) == ()
    assert fixture.filters()[3:] == [searches[0], {'limit'}, *searches[1:]]


SECOND = {**INTERFACE, 'id': 'interface-2', 'network_id': 'network-2'}


@pytest.mark.parametrize(
    ('source', 'lists'),
    [
        pytest.param(BEHIND_ROUTER, [[], []], id='no interface'),
        pytest.param(BEHIND_ROUTER, [[INTERFACE], [], []], id='the second time no interface'),
        pytest.param(BEHIND_ROUTER, [[], [INTERFACE]], id='the first time no interface'),
        pytest.param(BEHIND_ROUTER, [[SECOND], [], [INTERFACE, SECOND]], id='the first time fewer interfaces'),
        pytest.param(BEHIND_ROUTER, [[INTERFACE, SECOND], [], [SECOND]], id='the second time fewer interfaces'),
        pytest.param(BEHIND_ROUTER, [[INTERFACE], [], [INTERFACE], []], id='no reference port'),
        pytest.param(BEHIND_ROUTER, [[INTERFACE], [], [INTERFACE], [port()]], id='no reference port but an instance'),
        pytest.param(ON_NETWORK, [[], [], []], id='no port on the network'),
        pytest.param(ON_NETWORK, [[], [DHCP], []], id='no reference port on the network'),
    ],
)
def test_a_starting_neutron_that_leaves_out_ports_is_unavailable(source, lists):
    """It responds 200 with shortened lists until it has registered its policy rules. So 404 would be wrong."""
    fixture = Fixture().probed(*lists)
    with pytest.raises(IncompleteResult, match='Neutron'):
        fixture.find(source)
    assert len(fixture.api.queries) == len(lists)


@pytest.mark.parametrize(
    ('source', 'lists'),
    [
        (BEHIND_ROUTER, [[INTERFACE], [], [INTERFACE], [INTERFACE, port()]]),
        (ON_NETWORK, [[], [DHCP], [DHCP, port()]]),
        (ON_NETWORK, [[], [], [FOREIGN], [port()]]),
    ],
)
def test_the_second_search_finds_what_a_starting_neutron_left_out(source, lists):
    assert Fixture().probed(*lists).find(source) == (ONE,)


@pytest.mark.parametrize('missing', ['id', 'network_id', 'fixed_ips'])
def test_a_port_without_id_network_or_address_is_no_reference_port(missing):
    """Then the second search has no reference port."""
    incomplete = {**DHCP, missing: None}
    fixture = Fixture().probed([], [incomplete], [])
    if missing == 'network_id':
        fixture.api.outcomes = [[], [incomplete], [FOREIGN], []]
    assert fixture.find(ON_NETWORK) == ()
    assert [value for name, value in fixture.api.queries[-1] if name == 'fixed_ips'] == ['ip_address=10.1.1.2']


class StartingNeutron(FakeApi):
    """Selects and sorts ports as Neutron, and leaves out those that it checks before it has loaded the rules."""

    def __init__(self, known, checks_without_rules):
        super().__init__([])
        self.known = known
        self.checks_without_rules = checks_without_rules

    def ports(self, query, deadline, on_query, pages=100):
        values = {}
        for name, value in query:
            values.setdefault(name, []).append(value.removeprefix('ip_address='))
        selected = [known for known in self.known if self._is_selected(known, values)]
        if 'sort_key' in values:
            (key,), (direction,) = values['sort_key'], values['sort_dir']
            selected.sort(key=lambda known: known[key], reverse=direction == 'desc')
        shown = []
        for known in selected:
            self.checks_without_rules -= 1
            if self.checks_without_rules < 0:
                shown.append(known)
        return shown

    @staticmethod
    def _is_selected(known, values):
        filters = ('device_id', 'device_owner', 'network_id', 'mac_address')
        addresses = [fixed['ip_address'] for fixed in known['fixed_ips']]
        return all(known[name] in values.get(name, [known[name]]) for name in filters) and (
            'fixed_ips' not in values or bool(set(addresses) & set(values['fixed_ips']))
        )


@given(checks_without_rules=st.integers(0, 12), source=st.sampled_from([BEHIND_ROUTER, ON_NETWORK]), data=st.data())
def test_a_starting_neutron_never_makes_an_instance_unknown(checks_without_rules, source, data):
    interface = {**port(project_id=''), **INTERFACE, 'device_owner': 'network:router_interface'}
    second = {**interface, **SECOND, 'fixed_ips': [{'ip_address': '10.1.2.1'}]}
    dhcp = {**interface, **DHCP, 'device_owner': 'network:dhcp', 'fixed_ips': [{'ip_address': '10.1.1.3'}]}
    known = data.draw(st.permutations([port(), interface, second, dhcp]))
    clock = FakeClock()
    neutron = StartingNeutron(known, checks_without_rules)
    lookup = NeutronLookup(neutron, clock=clock)
    for _ in range(20):
        try:
            found = lookup.find(source, Deadline.after(9, clock))
        except InstanceLookupError:
            continue
        assert found == (ONE,)
        return
    raise AssertionError('the lookup stays unavailable')


def test_the_networks_of_a_large_router_are_confirmed_in_batches_with_a_reference_port_each():
    interfaces = [{**INTERFACE, 'id': f'interface-{n}', 'network_id': f'network-{n}'} for n in range(90)]
    fixture = Fixture().probed(interfaces, [], [], interfaces, interfaces)
    assert fixture.find() == ()
    confirmations = [query for query in fixture.api.queries if ('sort_key', 'device_owner') in query]
    assert [sum(name == 'network_id' for name, _ in query) for query in confirmations] == [40, 40, 10]
    fixture.probed(interfaces, [], [], interfaces, interfaces, interfaces[:40])
    with pytest.raises(IncompleteResult, match='no longer shows port interface-40: it may be starting'):
        fixture.find()


def test_a_role_that_sees_nothing_is_an_error_and_its_token_is_invalidated():
    """A token keeps the roles that it was issued with."""
    fixture = Fixture([], roles=('reader', 'member'))
    with pytest.raises(InstanceLookupError, match='to the roles member, reader; give the user the role service'):
        fixture.find()
    assert [reason for _, reason in fixture.auth.invalidated]


def test_a_role_that_sees_only_its_own_project_is_an_error():
    with pytest.raises(InstanceLookupError, match='shows no port of any other project'):
        Fixture([OWN], roles=('member',)).probe()


SHOWS_ONE = [{**INTERFACE, 'project_id': 'service-project'}]


@pytest.mark.parametrize('role', ['service', 'admin', 'advsvc'])
@pytest.mark.parametrize('source', [BEHIND_ROUTER, ON_NETWORK])
def test_an_empty_cloud_is_accepted_where_the_router_or_network_of_the_source_is_visible(role, source):
    fixture = Fixture(SHOWS_ONE, roles=('reader', role))
    result = fixture.probe()
    assert (result.ports, result.foreign, result.is_proven) == (1, 0, False)
    assert 'shows no ports of other projects to the roles' in str(result)
    assert fixture.find(source) == ()


@pytest.mark.parametrize(
    ('owners', 'networks'),
    [
        ([], 0),
        (['service-project'], 0),
        (['service-project', 'project-1', 'project-2'], 2),
        (InstanceLookupError('Neutron at http://neutron answered 404'), 0),
    ],
)
def test_networks_of_other_projects_show_in_an_empty_cloud_that_neutron_knows_the_role(owners, networks):
    fixture = Fixture([])
    fixture.api.owners = owners
    result = fixture.probe()
    assert (result.networks, result.is_likely, result.is_proven) == (networks, networks > 0, False)
    assert ('shows networks of other projects, which have no ports yet' in str(result)) == (networks > 0)


def test_networks_of_other_projects_do_not_make_an_empty_result_complete():
    """A policy may show them and hide the ports."""
    fixture = Fixture([])
    fixture.api.owners = ['project-1']
    with pytest.raises(InstanceLookupError, match='shows no port of network network-1, which sent a request'):
        fixture.find(ON_NETWORK)


def test_an_unavailable_neutron_is_no_sign_of_an_empty_cloud():
    fixture = Fixture([])
    fixture.api.owners = LookupUnavailable('no response')
    with pytest.raises(LookupUnavailable):
        fixture.probe()


@pytest.mark.parametrize('role', ['service', 'admin', 'advsvc'])
@pytest.mark.parametrize('source', [BEHIND_ROUTER, ON_NETWORK])
def test_an_empty_result_is_an_error_where_not_even_the_router_or_network_of_the_source_is_visible(role, source):
    """A Neutron before 2023.2 knows no role service, and a policy may redefine it: 200 and an empty list."""
    place = 'router router-1' if source is BEHIND_ROUTER else 'network network-1'
    with pytest.raises(InstanceLookupError, match=f'shows no port of {place}, which sent a request') as raised:
        Fixture([], roles=(role,)).find(source)
    assert not isinstance(raised.value, LookupUnavailable)


@pytest.mark.parametrize('roles', [('admin',), ()], ids=['system scope', 'unscoped'])
def test_a_token_without_project_that_sees_nothing_is_an_error(roles):
    fixture = Fixture([], roles=roles, project_id=None)
    with pytest.raises(InstanceLookupError, match='the token has no project'):
        fixture.probe()


def test_a_port_with_the_address_that_belongs_to_no_instance_is_reported_and_logged(caplog):
    caplog.set_level(logging.INFO)
    subport = port(id='port-9', device_owner='trunk:subport', device_id='')
    fixture = Fixture([INTERFACE], [subport], [FOREIGN], [INTERFACE], [INTERFACE, subport])
    assert fixture.find() == ()
    text = (
        'port port-9 on network network-1 has the address 10.1.1.2, but belongs to no instance: '
        "device_owner 'trunk:subport', device_id ''"
    )
    assert [record.getMessage() for record in caplog.records] == [f'No instance is at the address of a request: {text}']
    reported = []
    fixture.lookup.on_other_port = reported.append
    fixture.api.outcomes = [[], [DHCP], [DHCP]]
    fixture.find(ON_NETWORK)
    assert reported == []


@pytest.mark.parametrize('source', [BEHIND_ROUTER, ON_NETWORK])
def test_a_role_that_may_see_only_a_part_of_the_ports_is_not_trusted_with_an_empty_result(source):
    """Neutron also shows a member the foreign ports on the networks of its project, for example on a shared network."""
    fixture = Fixture([OWN, FOREIGN], roles=('member', 'reader'))
    result = fixture.probe()
    assert (result.foreign, result.is_proven, result.is_likely) == (1, False, False)
    assert 'shows ports of other projects to the roles member, reader' in str(result)
    fixture.api.outcomes = [[]]
    place = 'router router-1' if source is BEHIND_ROUTER else 'network network-1'
    with pytest.raises(InstanceLookupError, match=f'shows no port of {place}, which sent a request'):
        fixture.find(source)


@pytest.mark.parametrize('source', [BEHIND_ROUTER, ON_NETWORK])
def test_a_role_of_an_unknown_name_is_accepted_where_the_router_or_network_of_the_source_is_visible(source):
    fixture = Fixture([{**SHOWS_ONE[0], 'project_id': 'another'}], roles=('metadata_agent',))
    assert fixture.find(source) == ()


@pytest.mark.parametrize('role', ['service', 'admin', 'advsvc'])
def test_a_role_that_sees_all_is_accepted_after_a_port_of_another_project(role):
    result = Fixture([OWN, FOREIGN], roles=('reader', role)).probe()
    assert (result.is_proven, result.is_likely) == (True, True)
    assert f'shows ports of other projects; roles: {role}' in str(result).replace('reader, ', '').replace(
        ', reader', ''
    )


def test_without_keystone_a_port_of_another_project_is_enough():
    fixture = Fixture([FOREIGN], roles=(), project_id=None, expires_at_s=NEVER_S)
    assert fixture.probe().is_proven


def test_a_full_sample_of_own_ports_proves_nothing():
    assert Fixture([OWN] * SAMPLE_SIZE, roles=('member',)).probe().foreign == 0


def test_without_keystone_there_are_no_roles_to_check():
    fixture = Fixture([], roles=(), project_id=None, expires_at_s=NEVER_S)
    assert 'roles none (no Keystone)' in str(fixture.probe())


def test_an_unavailable_neutron_is_raised_as_such():
    with pytest.raises(LookupUnavailable):
        Fixture(LookupUnavailable('no route')).find()


def test_on_query_is_called_for_every_query():
    fixture = Fixture([INTERFACE], [port()])
    reported = []
    fixture.lookup.on_query = lambda *query: reported.append(query)
    fixture.find()
    assert reported == [('GET', 0.0, 1)] * 2


def test_close_closes_the_api():
    fixture = Fixture([])
    fixture.lookup.close()
    assert fixture.api.closed
