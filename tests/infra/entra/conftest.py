"""Contoso and Fabrikam, with the whole stack, on a directory in which nothing was set up."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import secrets
import ssl
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import aiohttp

from local.entra.directory import (
    ACS,
    ACS_CLIENTS,
    AZURE_CLI,
    CONTOSO,
    FABRIKAM,
    FABRIKAM_CALLERS,
    FARAH,
    GRACE,
    GRAPH,
    USER_ASSIGNED_IDENTITY,
    WEB_APP,
)
from local.stack import emulators, functions_host
from tests.emulated import BackgroundLoop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from local.entra.objects import Tenant, User
    from local.stack import FunctionsHost, Stack

ROOT = Path(__file__).parents[3]
MEMBERS = f"groups/{FABRIKAM_CALLERS.object_id}/members"
PAGE = "http://localhost:5173"
NO_ROLE = "00000000-0000-0000-0000-000000000000"
# What stands in for Azure CLI: it has the tokens of who is signed in.
AZ = """#!{python}
import json, os, sys, time

resource = sys.argv[sys.argv.index("--resource") + 1]
tokens = json.loads(os.environ["AZ_TOKENS"])
if resource not in tokens:
    sys.exit("ERROR: AADSTS65002: Consent between first party application and first party resource"
             " must be configured via preauthorization")
print(json.dumps({{"accessToken": tokens[resource], "expires_on": int(time.time()) + 3600}}))
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a user sees: the status and the body of an answer."""

    status: int
    body: dict[str, Any] = field(repr=False)

    @property
    def seen(self) -> tuple[int, str | None]:
        """Return the status, and the code of a problem."""
        return self.status, self.body.get("code")


@dataclass(slots=True)
class World:
    """Both organisations, their administrators' shells, and the browsers of their users."""

    stack: Stack
    background: BackgroundLoop
    folder: Path
    broker_id: str = ""
    host: FunctionsHost | None = None
    said: dict[str, subprocess.CompletedProcess[str]] = field(default_factory=dict)

    @property
    def trusted(self) -> str:
        """Return the file of the certificate authority."""
        return self.stack.environment["SSL_CERT_FILE"]

    def shell(self, who: User, **variables: str) -> dict[str, str]:
        """Return the variables of the shell of somebody who has done `az login`."""
        entra = self.stack.entra
        tokens = {
            resource.uris[0] + slash: entra.issue_access_token(
                who.user_name,
                client=AZURE_CLI,
                resource=resource,
                audience=resource.uris[0] + slash,
            )
            for resource, slash in ((GRAPH, ""), (ACS, "/"))
        }
        path = f"{self.folder}{os.pathsep}{os.environ['PATH']}"
        return {
            **os.environ,
            "PATH": path,
            "AZ_TOKENS": json.dumps(tokens),
            "REQUESTS_CA_BUNDLE": self.trusted,
            "ACS_ENDPOINT": self.stack.acs.url,
            **variables,
        }

    def command(self, *words: str) -> list[str]:
        """Return the command line."""
        entra = self.stack.entra.url
        return [sys.executable, "-m", "infra.entra", *words, "--authority-host", entra]

    def run(self, who: User, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the command in somebody's shell."""
        return subprocess.run(  # noqa: S603 - our own command
            self.command(*words),
            cwd=ROOT,
            env=self.shell(who, **variables),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    @contextmanager
    def start(self, who: User, *words: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
        """Start the command, whose output can be read while it runs."""
        with subprocess.Popen(  # noqa: S603 - our own command
            self.command(*words),
            cwd=ROOT,
            env=self.shell(who, PYTHONUNBUFFERED="1", **variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def approve_device(self, who: User, code: str) -> None:
        """Type the code of a device into a browser, and sign in."""
        page = f"{self.stack.entra.url}/common/oauth2/deviceauth"
        form = {"user_code": code, "account": who.object_id}
        assert 200 == self._call("POST", page, data=form).status

    def done(self, who: User, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the command, which succeeds."""
        finished = self.run(who, *words)
        assert 0 == finished.returncode, finished.stderr + finished.stdout
        return finished

    def graph(self, who: User, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """Do what an administrator does in the portal or with `az ad`."""
        token = self.stack.entra.issue_access_token(
            who.user_name, client=AZURE_CLI, resource=GRAPH, audience=GRAPH.uris[0]
        )
        answer = self._call(
            method,
            f"{self.stack.entra.url}/v1.0/{path}",
            headers={"Authorization": f"Bearer {token}"},
            json=body,
        )
        assert answer.status < 400, answer.body
        return answer.body

    def principal(self, who: User, client_id: str) -> str:
        """Return the object id of an app's service principal in somebody's tenant."""
        return str(self.graph(who, "GET", f"servicePrincipals(appId='{client_id}')")["id"])

    def open_and_accept(self, who: User, link: str) -> dict[str, str]:
        """Open a page of Entra's as an administrator, accept, and return what the app is told."""
        answer = self._call(
            "POST", link, data={"account": who.object_id, "consent": "accept"}, redirects=False
        )
        return _query(answer)

    def sign_in(self, user: User, tenant: Tenant) -> str:
        """Sign a user in to the client app, and return an access token for the broker.

        Raises:
            AssertionError: Entra refuses; the message is Entra's.
        """
        verifier = secrets.token_urlsafe(32)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest())
        asked = {
            "client_id": WEB_APP.client_id,
            "response_type": "code",
            "redirect_uri": PAGE,
            "scope": f"api://{CONTOSO.tenant_id}/acs-token-broker/access_as_user",
            "code_challenge": challenge.rstrip(b"=").decode(),
            "code_challenge_method": "S256",
            "prompt": "select_account",
        }
        entra = f"{self.stack.entra.url}/{tenant.tenant_id}/oauth2/v2.0"
        answer = self._call(
            "POST",
            f"{entra}/authorize",
            params=asked,
            data={"account": user.object_id},
            redirects=False,
        )
        code = _query(answer)
        assert "code" in code, code or answer.body
        form = {
            "grant_type": "authorization_code",
            "client_id": WEB_APP.client_id,
            "redirect_uri": PAGE,
            "code": code["code"],
            "code_verifier": verifier,
        }
        redeemed = self._call("POST", f"{entra}/token", data=form, headers={"Origin": PAGE})
        assert 200 == redeemed.status, redeemed.body
        return str(redeemed.body["access_token"])

    def exchange(self, user: User, tenant: Tenant) -> Answer:
        """Sign a user in, and get the broker's answer about a token of an Entra ID user."""
        token = self.sign_in(user, tenant)
        assert self.host
        return self._call(
            "GET",
            f"{self.host.url.rstrip('/')}/api/token/entra",
            headers={"Authorization": f"Bearer {token}"},
        )

    def _call(self, method: str, url: str, *, redirects: bool = True, **options: Any) -> Answer:
        async def call() -> Answer:
            trust = ssl.create_default_context(cafile=self.trusted)
            connector = aiohttp.TCPConnector(ssl=trust)
            async with (
                aiohttp.ClientSession(connector=connector) as session,
                session.request(method, url, allow_redirects=redirects, **options) as response,
            ):
                text = await response.text()
                is_json = response.content_type.endswith("json")
                body = json.loads(text) if text and is_json else {"text": text}
                return Answer(
                    response.status, {**body, "location": response.headers.get("Location")}
                )

        return self.background.run(call())

    # The steps of the walk-through.

    def contoso_sets_up(self) -> None:
        """Register the broker, and start it with the settings that the command has printed."""
        words = ("--multitenant", "--client-id", WEB_APP.client_id, "--consent")
        identity = ("--identity", USER_ASSIGNED_IDENTITY.principal_id)
        self.said["doctor before"] = self.run(GRACE, "doctor")
        self.said["dry run"] = self.done(GRACE, "setup", *words, *identity, "--dry-run")
        self.said["setup"] = self.done(GRACE, "setup", *words)
        self.said["dry run with identity"] = self.done(GRACE, "setup", *identity, "--dry-run")
        self.said["setup with identity"] = self.done(GRACE, "setup", *identity)
        self.said["setup again"] = self.done(GRACE, "setup", *words, *identity)
        printed = dict(re.findall(r"^([A-Z_]+)=(.*)$", self.said["setup"].stdout, re.MULTILINE))
        self.broker_id = printed["ENTRA_CLIENT_ID"]
        settings = {
            name: printed[name]
            for name in ("ENTRA_CLIENT_ID", "ENTRA_REQUIRED_SCOPE", "ACS_EXCHANGES")
        }
        settings["ENTRA_AUDIENCES"] = printed["ENTRA_APPLICATION_ID_URI"]
        self.host = self.background.enter(functions_host(self.stack, settings))

    def fabrikam_consents(self) -> list[str]:
        """Open the links as Fabrikam's administrator, and return what comes of each."""
        self.said["links"] = self.done(GRACE, "consent-url", "--tenant", FABRIKAM.tenant_id)
        links = re.findall(r"^https://.*$", self.said["links"].stdout, re.MULTILINE)
        answers = [self.open_and_accept(FARAH, link) for link in links]
        return [each.get("error_description") or each["admin_consent"] for each in answers]

    def add_acs(self, who: User) -> None:
        """Do what `az ad sp create --id` does."""
        self.graph(who, "POST", "servicePrincipals", {"appId": ACS_CLIENTS.client_id})

    def contoso_assigns(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Give Fabrikam's group access to Contoso's ACS resource."""
        group = ("group", FABRIKAM_CALLERS.object_id, "--tenant", FABRIKAM.tenant_id)
        return self.done(GRACE, "assign", *group, *words)

    def fabrikam_assigns(self) -> None:
        """Assign the group to Azure Communication Services Clients, as in the admin center."""
        resource = self.principal(FARAH, ACS_CLIENTS.client_id)
        body = {
            "principalId": FABRIKAM_CALLERS.object_id,
            "resourceId": resource,
            "appRoleId": NO_ROLE,
        }
        self.graph(FARAH, "POST", f"servicePrincipals/{resource}/appRoleAssignedTo", body)

    def remove_from_group(self, user: User) -> None:
        """Take a user out of Fabrikam's group."""
        self.graph(FARAH, "DELETE", f"{MEMBERS}/{user.object_id}/$ref")

    def add_to_group(self, user: User) -> None:
        """Put a user back into Fabrikam's group."""
        reference = f"{self.stack.entra.url}/v1.0/directoryObjects/{user.object_id}"
        self.graph(FARAH, "POST", f"{MEMBERS}/$ref", {"@odata.id": reference})

    def doctor_of_fabrikam(self, user: User) -> subprocess.CompletedProcess[str]:
        """Let Fabrikam's administrator ask about a user, with the list that Contoso has sent."""
        file = self.folder / "assignments.json"
        file.write_text(self.done(GRACE, "assignments", "--json").stdout)
        words = ("--broker", self.broker_id, "--client-id", WEB_APP.client_id)
        return self.run(
            FARAH, "doctor", "--user", user.user_name, "--assignments", str(file), *words
        )

    def doctor_of_contoso(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Let Contoso's administrator ask."""
        identity = ("--identity", USER_ASSIGNED_IDENTITY.principal_id)
        return self.run(GRACE, "doctor", "--client-id", WEB_APP.client_id, *identity, *words)


def _query(answer: Answer) -> dict[str, str]:
    """Return the parameters of the address that a browser is sent to."""
    query = parse_qs(urlsplit(answer.body.get("location") or "").query)
    return {name: values[0] for name, values in query.items()}


def codes_of(finished: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the codes of what a doctor has found."""
    return re.findall(r"^FAILED   ([a-z-]+):", finished.stdout, re.MULTILINE)


def fix_of(finished: subprocess.CompletedProcess[str]) -> str:
    """Return the first fix that a doctor names."""
    found = re.search(r"^         Fix: (.*)$", finished.stdout, re.MULTILINE)
    assert found, finished.stdout
    return found[1]


@contextmanager
def untouched_world(folder: Path) -> Iterator[World]:
    """Run the stack on a directory in which nothing was set up."""
    az = folder / "az"
    az.write_text(AZ.format(python=sys.executable))
    az.chmod(0o755)
    background = BackgroundLoop()
    try:
        stack = background.enter(emulators(managed_identity=True, untouched_directory=True))
        stack.acs.roles.give(GRACE.object_id)
        yield World(stack, background, folder)
    finally:
        background.close()
