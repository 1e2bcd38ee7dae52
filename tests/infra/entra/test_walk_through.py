"""Contoso serves Fabrikam: Microsoft's walk-through for Entra ID users, and all that goes wrong.

Every command is the real one, in a process of its own; users sign in as in a browser. Each test of
what goes wrong ends as the administrator's day would: the doctor's advice is followed, and the user
gets a token again.
"""

from __future__ import annotations

import json
import re
import shlex
from typing import TYPE_CHECKING

import pytest

from local.entra.directory import (
    ACS_CLIENTS,
    AZURE_CLI,
    CONTOSO,
    DEPLOYER,
    FABRIKAM,
    FABRIKAM_CALLERS,
    FADI,
    FARAH,
    GRACE,
    GRAPH,
    GUEST,
    USER_ASSIGNED_IDENTITY,
    WEB_APP,
)
from tests.infra.entra.conftest import ROOT, codes_of, fix_of, untouched_world

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.infra.entra.conftest import World

pytestmark = pytest.mark.xdist_group("entra-walk-through")  # Starting the stack takes time.
NOT_ASSIGNED = (403, "not_assigned")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Contoso and Fabrikam after the walk-through."""
    with untouched_world(tmp_path_factory.mktemp("walk-through")) as world:
        world.contoso_sets_up()
        with pytest.raises(AssertionError, match="AADSTS"):
            world.sign_in(FADI, FABRIKAM)
        assert "AADSTS650052" in world.fabrikam_consents()[0]
        world.add_acs(FARAH)
        assert ["True", "True"] == world.fabrikam_consents()
        assert NOT_ASSIGNED == world.exchange(FADI, FABRIKAM).seen
        world.said["assign"] = world.contoso_assigns()
        world.fabrikam_assigns()
        yield world


@pytest.fixture(autouse=True)
def ends_well(world: World) -> Iterator[None]:
    """Find the world in order, and leave it so."""
    yield
    answer = world.exchange(FADI, FABRIKAM)
    assert 200 == answer.status, answer.body


def follow(world: World, fix: str) -> None:
    """Run the command that a doctor advises, as Contoso's administrator."""
    words = shlex.split(fix, comments=True)
    assert [".venv/bin/python", "-m", "infra.entra"] == words[:3]
    world.done(GRACE, *words[3:])


class TestStory:
    """The steps of the walk-through."""

    def test_before(self, world: World) -> None:
        """At first the doctor sends the administrator to `setup`."""
        before = world.said["doctor before"]
        assert 1 == before.returncode
        assert ["acs-not-in-tenant", "broker-not-registered"] == codes_of(before)
        assert ": .venv/bin/python -m infra.entra setup " in before.stdout

    def test_dry_run(self, world: World) -> None:
        """A dry run shows the calls, which `setup` then makes in the same order."""
        shown = re.findall(r"^# (.*)$", world.said["dry run"].stdout, re.MULTILINE)
        assert "None of these calls was sent." == shown.pop()
        assert "{id of {" not in world.said["dry run"].stdout
        both = world.said["setup"].stderr + world.said["setup with identity"].stderr
        made = re.findall(r"^(.*) \.\.\.$", both, re.MULTILINE)
        made = [f"{each[0].lower()}{each[1:]}" for each in made if not each.startswith("Reading")]
        assert sorted(shown) == sorted(made)

    def test_again(self, world: World) -> None:
        """Then there is nothing to change."""
        assert "Changes in tenant" in world.said["setup"].stdout
        assert f"{CONTOSO.tenant_id}: none.\n" in world.said["setup again"].stdout

    def test_next_steps(self, world: World) -> None:
        """What is left to do gets less."""
        first, second = (world.said[name].stdout for name in ("setup", "setup with identity"))
        assert "--identity <IDENTITY_PRINCIPAL_ID>" in first
        assert "--identity" not in second
        assert "consent-url --tenant <tenant id>" in second

    def test_token(self, world: World) -> None:
        """Fabrikam's user gets a token of Contoso's ACS resource, as the same person."""
        answer = world.exchange(FADI, FABRIKAM)
        assert 200 == answer.status
        user = answer.body["user"]["communicationUserId"]
        assert user.endswith(f"{FABRIKAM.tenant_id}_{FADI.object_id}")
        assert world.stack.acs.token_is_valid(answer.body["token"])

    def test_doctors_are_content(self, world: World) -> None:
        """On both sides nothing is found."""
        for finished in (world.doctor_of_contoso(), world.doctor_of_fabrikam(FADI)):
            assert (0, []) == (finished.returncode, codes_of(finished)), finished.stdout
            assert "No problems found." in finished.stdout


def blocks_of(page: str) -> dict[str, str]:
    """Return the commands that a page shows with their output: the arguments, and the output."""
    found: dict[str, str] = {}
    for block in re.findall(r"```console\n(.*?)```", page, re.DOTALL):
        for command in re.split(r"^\$ \S+ -m infra\.entra ", block, flags=re.MULTILINE):
            words, _, output = command.partition("\n")
            found |= {words: output} if words else {}
    return found


def test_page(world: World) -> None:
    """What the page shows is what the commands print, but for the ids and addresses made here."""
    world.remove_from_group(FADI)
    blocks = blocks_of((ROOT / "docs/entra-users.md").read_text())
    shown_id = re.search(r"ENTRA_CLIENT_ID=(\S+)", blocks[next(iter(blocks))])
    assert shown_id
    real = {
        "doctor --user": world.doctor_of_fabrikam(FADI),
        "doctor --client-id": world.doctor_of_contoso(),
        "setup --multitenant": world.said["setup"],
        "--dry-run": world.said["dry run with identity"],
        "setup --identity": world.said["setup with identity"],
        "consent-url": world.said["links"],
        "assign ": world.said["assign"],
        "assignments": world.done(GRACE, "assignments"),
    }
    world.add_to_group(FADI)
    assert len(real) == len(blocks)
    for words, shown in blocks.items():
        finished = next(each for start, each in real.items() if start in words)
        printed = (finished.stderr + finished.stdout).replace(world.broker_id, shown_id[1])
        printed = printed.replace(f" --authority-host {world.stack.entra.url}", "")
        printed = printed.replace(world.stack.entra.url, "https://login.microsoftonline.com")
        acs = "https://acs-contoso.europe.communication.azure.com"
        printed = printed.replace(world.stack.acs.url, acs)
        assert _without_object_id(shown) == _without_object_id(printed), words


def _without_object_id(text: str) -> str:
    return re.sub(r"/applications/[0-9a-f-]{36}/", "/applications/.../", text)


class TestWhatGoesWrong:
    """What the user sees, what the doctor says, and that its advice helps."""

    def test_no_consent(self, world: World) -> None:
        """Fabrikam's administrator takes the consent back."""
        broker = world.principal(FARAH, world.broker_id)
        path = f"servicePrincipals/{broker}/oauth2PermissionGrants"
        for grant in world.graph(FARAH, "GET", path)["value"]:
            if "VoIP" in grant["scope"]:
                world.graph(FARAH, "DELETE", f"oauth2PermissionGrants/{grant['id']}")

        assert (403, "consent_required") == world.exchange(FADI, FABRIKAM).seen
        found = world.doctor_of_fabrikam(FADI)
        assert (1, ["consent-missing"]) == (found.returncode, codes_of(found))

        link = re.search(r"https://\S+", fix_of(found))
        assert link
        world.open_and_accept(FARAH, link[0])

    def test_acs_is_not_in_the_tenant(self, world: World) -> None:
        """Somebody deletes the service principal of ACS in Fabrikam, and with it the consent."""
        acs = world.principal(FARAH, ACS_CLIENTS.client_id)
        world.graph(FARAH, "DELETE", f"servicePrincipals/{acs}")

        assert (403, "consent_required") == world.exchange(FADI, FABRIKAM).seen
        found = world.doctor_of_fabrikam(FADI)
        assert ["acs-not-in-tenant", "consent-missing"] == codes_of(found)
        assert f"az ad sp create --id {ACS_CLIENTS.client_id}" == fix_of(found)

        world.add_acs(FARAH)
        world.fabrikam_consents()
        world.fabrikam_assigns()

    def test_no_assignment(self, world: World) -> None:
        """Contoso takes the access of Fabrikam's group away."""
        world.done(GRACE, "unassign", FABRIKAM_CALLERS.object_id)

        assert NOT_ASSIGNED == world.exchange(FADI, FABRIKAM).seen
        found = world.doctor_of_fabrikam(FADI)
        assert ["assignment-missing"] == codes_of(found)

        follow(world, fix_of(found))
        assert 200 == world.exchange(FADI, FABRIKAM).status
        world.done(GRACE, "unassign", FADI.object_id)
        world.contoso_assigns()

    def test_wrong_client_id(self, world: World) -> None:
        """Contoso names the client app, where the broker asks on the user's behalf."""
        world.done(GRACE, "unassign", FABRIKAM_CALLERS.object_id)
        world.contoso_assigns("--client-id", WEB_APP.client_id)

        assert NOT_ASSIGNED == world.exchange(FADI, FABRIKAM).seen
        found = world.doctor_of_fabrikam(FADI)
        assert ["assignment-wrong-client"] == codes_of(found)

        follow(world, fix_of(found))

    def test_guest(self, world: World) -> None:
        """Fabrikam's user signs in to Contoso's tenant, as the guest there."""
        assert NOT_ASSIGNED == world.exchange(GUEST, CONTOSO).seen
        found = world.doctor_of_contoso("--user", GUEST.user_name)
        assert ["guest"] == codes_of(found)

        follow(world, fix_of(found).partition("give the guest access: ")[2])
        assert 200 == world.exchange(GUEST, CONTOSO).status
        world.done(GRACE, "unassign", GUEST.object_id)

    def test_removed_from_the_group(self, world: World) -> None:
        """Fabrikam takes the user out of the group."""
        world.remove_from_group(FADI)

        assert NOT_ASSIGNED == world.exchange(FADI, FABRIKAM).seen
        found = world.doctor_of_fabrikam(FADI)
        assert ["not-in-assigned-group"] == codes_of(found)
        advice = f"--group {FABRIKAM_CALLERS.object_id} --member-id {FADI.object_id}"
        assert advice in fix_of(found)

        world.add_to_group(FADI)

    def test_wrong_federated_credential(self, world: World) -> None:
        """Contoso's registration trusts another managed identity than the one it has."""
        path = f"applications(appId='{world.broker_id}')/federatedIdentityCredentials"
        (credential,) = world.graph(GRACE, "GET", path)["value"]
        changes = {"subject": FADI.object_id}
        world.graph(GRACE, "PATCH", f"{path}/{credential['id']}", changes)

        assert (502, "upstream_auth") == world.exchange(FADI, FABRIKAM).seen
        found = world.doctor_of_contoso()
        assert ["federated-credential-wrong"] == codes_of(found)
        assert USER_ASSIGNED_IDENTITY.principal_id in found.stdout

        follow(world, fix_of(found))


def test_another_registration(world: World) -> None:
    """A second broker, for Teams users, stays the one that later commands are about."""
    words = ("--unique-name", "teams-broker", "--sign-in-tenant", CONTOSO.tenant_id)
    first = world.done(GRACE, "setup", "--exchange", "teams", "--multitenant", *words)
    assert "ACS_EXCHANGES=teams\n" in first.stdout
    lines = re.findall(r"^     \.venv/bin/python -m infra\.entra (.*)$", first.stdout, re.MULTILINE)
    name, sign_in = " ".join(words[:2]), " ".join(words[2:])
    access = f"{sign_in} --authority-host {world.stack.entra.url}"
    assert [
        f"setup --identity <IDENTITY_PRINCIPAL_ID> {name} --exchange teams {access}",
        f"setup --consent {name} --exchange teams {access}",
        f"consent-url --tenant <tenant id> {name} {access}",
    ] == lines

    again = world.done(GRACE, "setup", "--unique-name", "teams-broker")
    assert f"{CONTOSO.tenant_id}: none.\n" in again.stdout
    assert "ACS_EXCHANGES=teams\n" in again.stdout
    links = world.done(GRACE, "consent-url", "--tenant", FABRIKAM.tenant_id, *words[:2]).stdout
    assert ACS_CLIENTS.client_id not in links


def test_planted_registration(world: World) -> None:
    """What somebody else has registered under the name gets no consent until it was looked at."""
    body = {"displayName": "ACS token broker", "uniqueName": "planted"}
    planted = world.graph(GRACE, "POST", "applications", body)
    path = f"applications/{planted['id']}"
    credential = {
        "name": "mine",
        "issuer": "https://token.actions.githubusercontent.com",
        "subject": "repo:eve/eve:ref:refs/heads/main",
        "audiences": ["api://AzureADTokenExchange"],
    }
    world.graph(GRACE, "POST", f"{path}/federatedIdentityCredentials", credential)
    before = world.graph(GRACE, "GET", path)

    words = ("setup", "--unique-name", "planted")
    for option in ("--consent", "--multitenant"):
        refused = world.run(GRACE, *words, option)
        assert 2 == refused.returncode
        assert f"registration {planted['appId']} was here already" in refused.stderr
        assert "the federated credential mine of the subject repo:eve/eve" in refused.stderr
        assert f"with --broker {planted['appId']}" in refused.stderr
        assert before == world.graph(GRACE, "GET", path)

    warned = world.done(GRACE, *words)
    assert warned.stderr.index("credential mine") < warned.stderr.index("Complete the broker's")
    assert ["unexpected-credential"] == [
        each
        for each in codes_of(world.run(GRACE, "doctor", *words[1:]))
        if each.startswith("unexpected")
    ]
    named = world.done(GRACE, *words, "--broker", planted["appId"], "--consent")
    assert "Warning" not in named.stderr

    changes = {
        "displayName": "ACS\ntoken broker",
        "signInAudience": "AzureADMultipleOrgs",
        "web": {"redirectUris": ["https://eve.example/"]},
    }
    world.graph(GRACE, "PATCH", path, changes)
    links = ("consent-url", "--tenant", FABRIKAM.tenant_id, *words[1:])
    assert "run: .venv/bin/python -m infra.entra setup" in world.run(GRACE, *links).stderr
    world.done(GRACE, *words)
    shown = world.done(GRACE, *links).stdout
    assert "eve.example" not in shown
    assert "\nACS\\ntoken broker\n" in shown
    world.graph(GRACE, "DELETE", path)


class TestSignIns:
    """Who may do what, and how they sign in."""

    def test_user_without_a_role(self, world: World) -> None:
        """A refusal names the role that it takes."""
        finished = world.run(FADI, "setup")
        assert 2 == finished.returncode
        assert "403 Authorization_RequestDenied" in finished.stderr
        assert "Cloud Application Administrator" in finished.stderr

    def test_no_role_at_acs(self, world: World) -> None:
        """The same at ACS."""
        finished = world.run(FARAH, "assignments")
        assert 2 == finished.returncode
        assert "Communication and Email Service Owner" in finished.stderr

    def test_azure_cli_has_no_tokens_for_acs(self, world: World) -> None:
        """The command says how else to sign in; the doctor goes on with what it can read."""
        entra = world.stack.entra
        token = entra.issue_access_token(
            GRACE.user_name, client=AZURE_CLI, resource=GRAPH, audience=GRAPH.uris[0]
        )
        tokens = json.dumps({GRAPH.uris[0]: token})
        finished = world.run(GRACE, "assignments", AZ_TOKENS=tokens)
        assert 2 == finished.returncode
        assert "AADSTS65002" in finished.stderr
        assert "--sign-in environment" in finished.stderr

        found = world.run(GRACE, "doctor", AZ_TOKENS=tokens)
        assert (1, ["assignments-unreadable"]) == (found.returncode, codes_of(found))
        assert "ok       the broker is registered" in found.stdout

    def test_device_code(self, world: World) -> None:
        """Without Azure CLI, the administrator types a code into a browser."""
        with world.start(GRACE, "doctor", "--sign-in", "device-code", ACS_ENDPOINT="") as process:
            assert process.stdout
            prompt = process.stdout.readline()
            code = re.search(r"enter the code ([A-Z]+)", prompt)
            assert code, prompt
            world.approve_device(GRACE, code[1])
            rest = process.communicate(timeout=60)[0]
        assert 0 == process.returncode, rest
        assert "No problems found." in rest

    def test_service_principal(self, world: World) -> None:
        """A pipeline signs in with its secret, through azure-identity."""
        variables = {
            "AZURE_TENANT_ID": CONTOSO.tenant_id,
            "AZURE_CLIENT_ID": DEPLOYER.client_id,
            "AZURE_CLIENT_SECRET": DEPLOYER.secret or "",
        }
        finished = world.run(GRACE, "setup", "--sign-in", "environment", **variables)
        assert 0 == finished.returncode, finished.stderr
        assert f"{CONTOSO.tenant_id}: none." in finished.stdout

    def test_tenant_of_a_service_principal(self, world: World) -> None:
        """A tenant that the sign-in would ignore is refused."""
        words = ("--sign-in", "environment", "--sign-in-tenant", FABRIKAM.tenant_id)
        finished = world.run(GRACE, "doctor", *words)
        assert 2 == finished.returncode
        assert "takes no --sign-in-tenant" in finished.stderr

    def test_variable_that_is_not_used(self, world: World) -> None:
        """What a command does not use cannot stop it."""
        words = ("setup", "--dry-run")
        assert 0 == world.run(GRACE, *words, ACS_ENDPOINT="no address").returncode
        finished = world.run(GRACE, "assignments", ACS_ENDPOINT="no address")
        assert 2 == finished.returncode
        assert "Not done: ACS_ENDPOINT" in finished.stderr

    def test_no_secret(self, world: World) -> None:
        """Without the variables, azure-identity's own advice is shown, once."""
        finished = world.run(GRACE, "setup", "--sign-in", "environment", AZURE_CLIENT_SECRET="")
        assert 2 == finished.returncode
        assert finished.stderr.count("EnvironmentCredential") == 1
