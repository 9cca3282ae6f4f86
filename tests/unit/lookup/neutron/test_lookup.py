# SPDX-License-Identifier: Apache-2.0
import pytest

from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import InstanceLookupError, LookupUnavailable
from metadata_wsgi.lookup.neutron.lookup import SAMPLE, VISIBILITY_CHECK_S, NeutronLookup
from metadata_wsgi.pipeline.environ_keys import Instance, Source
from tests.fakes import FakeClock

from .fakes import FakeAccess, FakeApi, grant, port

BEHIND_ROUTER = Source('10.1.1.2', router_id='router-1')
ON_NETWORK = Source('10.1.1.2', network_id='network-1')
INTERFACE = {'network_id': 'network-1'}
FOREIGN = {'id': 'p', 'project_id': 'another'}
OWN = {'id': 'p', 'project_id': 'service-project'}
ONE = Instance('instance-1', 'project-1', 'port-1')


class Asked:
    """A directory on a fake clock."""

    def __init__(self, *outcomes, roles=('service',), project_id='service-project'):
        self.clock = FakeClock()
        self.access = FakeAccess(grant(roles=roles, project_id=project_id))
        self.api = FakeApi(*outcomes, access=self.access)
        self.directory = NeutronLookup(self.api, clock=self.clock)

    def find(self, source=BEHIND_ROUTER):
        return self.directory.find(source, Deadline.after(9, self.clock))

    def probe(self):
        return self.directory.probe(Deadline.after(9, self.clock))

    def asked_for(self):
        """The names of each question's filters."""
        return [{name for name, _ in query} - {'fields'} for query in self.api.asked]


def test_behind_a_router_two_questions_find_the_guest():
    asked = Asked([INTERFACE], [port()])
    assert asked.find() == (ONE,)
    assert asked.asked_for() == [{'device_id', 'device_owner'}, {'network_id', 'fixed_ips'}]


def test_on_a_network_one_question_does():
    asked = Asked([port()])
    assert asked.find(ON_NETWORK) == (ONE,)
    assert asked.asked_for() == [{'network_id', 'fixed_ips'}]


def test_behind_a_router_without_networks_no_address_is_asked_for():
    asked = Asked([], [FOREIGN])
    assert asked.find() == ()
    assert asked.asked_for() == [{'device_id', 'device_owner'}, {'limit'}]


def test_an_empty_answer_is_believed_while_other_projects_ports_were_seen():
    asked = Asked([FOREIGN])
    asked.probe()
    asked.api.asked.clear()
    assert asked.find(ON_NETWORK) == ()
    assert asked.asked_for() == [{'network_id', 'fixed_ips'}]
    asked.clock.now_s += VISIBILITY_CHECK_S
    assert asked.find(ON_NETWORK) == ()
    assert asked.asked_for()[1:] == [{'network_id', 'fixed_ips'}, {'limit'}]


def test_a_role_that_sees_nothing_is_an_error_and_its_token_is_let_go():
    """A token keeps the roles that it was made with."""
    asked = Asked([], roles=('reader', 'member'))
    with pytest.raises(InstanceLookupError, match='to the roles member, reader; give the user the role service'):
        asked.find()
    assert [why for _, why in asked.access.distrusted]


def test_a_role_that_sees_only_its_own_project_is_an_error():
    with pytest.raises(InstanceLookupError, match='shows no port of any other project'):
        Asked([OWN], roles=('member',)).probe()


@pytest.mark.parametrize('role', ['service', 'admin', 'advsvc'])
def test_an_empty_cloud_is_none_for_a_role_that_may_see_all(role):
    asked = Asked([], roles=('reader', role))
    sight = asked.probe()
    assert (sight.ports, sight.foreign) == (0, 0)
    assert 'has no ports of other projects to show yet' in str(sight)
    assert asked.find() == ()


def test_a_role_of_an_unknown_name_that_sees_other_projects_will_do():
    sight = Asked([OWN, FOREIGN], roles=('metadata_agent',)).probe()
    assert sight.foreign == 1
    assert 'shows ports of other projects; roles: metadata_agent' in str(sight)


def test_a_sample_of_its_own_ports_only_says_nothing():
    assert Asked([OWN] * SAMPLE, roles=('member',)).probe().foreign == 0


def test_without_keystone_there_are_no_roles_to_judge():
    sight = Asked([], roles=(), project_id=None).probe()
    assert 'roles: none (no Keystone)' in str(sight)


def test_a_quantum_that_is_away_says_so_and_nothing_else():
    with pytest.raises(LookupUnavailable):
        Asked(LookupUnavailable('no route')).find()


def test_every_query_is_told_to_who_wants_to_know():
    asked = Asked([INTERFACE], [port()])
    told = []
    asked.directory.on_query = lambda *query: told.append(query)
    asked.find()
    assert told == [('asked', 0.0, 1)] * 2


def test_close_closes_the_api():
    asked = Asked([])
    asked.directory.close()
    assert asked.api.closed
