"""The demo: two people sign in with Entra, and get ACS tokens for their Entra tokens."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import aiohttp

from local.entra.directory import ADA, BROKER, DAEMON, EXPENSES_API, FADI, WEB_APP
from local.stack import emulators, functions_host

if TYPE_CHECKING:
    from local.entra.objects import App, User

REDIRECT_URI = "http://127.0.0.1:3000/"


class DemoError(Exception):
    """A step did not go as it should; the message says which, and what happened."""


async def demo() -> None:
    """Start the stack on free ports, show the main job, and stop everything.

    Raises:
        DemoError: a step went wrong.
        StackError, AzuriteError, NodeError: the stack does not start.
    """
    started = time.monotonic()
    print("Starting the local stack: Entra, ACS, Azurite, a functions host ...", flush=True)
    try:
        await _demo(started)
    except (aiohttp.ClientError, ValueError) as exc:
        raise DemoError(f"a service did not answer as it should: {exc!r}") from exc
    print("Everything is stopped again.")


async def _demo(started: float) -> None:
    async with (
        emulators() as stack,
        functions_host(stack, {"PRUNE_DRY_RUN": "true"}) as host,
        aiohttp.ClientSession() as session,
    ):
        print(f"  up after {time.monotonic() - started:.0f} s: {host.url}\n")
        shown = _Demo(session, stack.entra.url, host.url)
        for user in (ADA, FADI):
            await shown.main_job(user)
        await shown.refusals(ADA)
        await shown.prune()
        try:
            report = await host.printed('"event": "prune_')
        except TimeoutError:
            raise DemoError("the prune timer wrote no report") from None
        print(f"  {report[report.index('{') :]}\n")


class _Demo:
    def __init__(self, session: aiohttp.ClientSession, entra: str, functions: str) -> None:
        self._session = session
        self._entra = entra
        self._functions = functions

    async def main_job(self, user: User) -> None:
        """Sign in, and ask for a token twice."""
        print(f"{user.name} of {user.tenant.name} signs in (authorization code with PKCE).")
        access_token = await self._sign_in(user, BROKER)
        first = await self._issue("GET", access_token)
        asked = {"scopes": ["voip"], "expiresInMinutes": 90}
        second = await self._issue("POST", access_token, asked)
        if first["user"] != second["user"] or first["token"] == second["token"]:
            raise DemoError("the second call returned another identity, or the same token")
        print("  The same identity, a new token.\n")

    async def refusals(self, user: User) -> None:
        """Ask with tokens that are valid, but not for this."""
        print("Refused, with a problem (RFC 9457) that says why:")
        foreign = await self._sign_in(user, EXPENSES_API)
        await self._refuse("a token for another API (wrong audience)", foreign, "invalid_token")
        app_only = await self._redeem(
            user,
            grant_type="client_credentials",
            client_id=DAEMON.client_id,
            client_secret=DAEMON.secret or "",
            scope=f"{BROKER.uris[0]}/.default",
        )
        await self._refuse(
            "an app's token, without a person's consent (missing scope)",
            app_only,
            "insufficient_scope",
        )
        print()

    async def prune(self) -> None:
        """Run the timer now."""
        print("The prune timer does a dry run, and reports:")
        url = self._functions.removesuffix("/") + "/admin/functions/prune_mappings"
        async with self._session.post(url, json={}) as response:
            if response.status != HTTPStatus.ACCEPTED:
                raise DemoError(f"the prune timer did not run: status {response.status}")

    async def _sign_in(self, user: User, resource: App) -> str:
        """Sign in as a browser does, and return an access token for an API."""
        verifier = secrets.token_urlsafe(32)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest())
        asked = {
            "client_id": WEB_APP.client_id,
            "response_type": "code",
            "redirect_uri": REDIRECT_URI,
            "scope": f"{resource.uris[0]}/{resource.scopes[0]}",
            "state": secrets.token_urlsafe(8),
            "code_challenge": challenge.rstrip(b"=").decode(),
            "code_challenge_method": "S256",
            "prompt": "select_account",
        }
        url = f"{self._entra}/{user.tenant.tenant_id}/oauth2/v2.0/authorize"
        async with self._session.post(
            url, params=asked, data={"account": user.object_id}, allow_redirects=False
        ) as response:
            answer = parse_qs(urlsplit(response.headers.get("Location", "")).query)
        if answer.get("state") != [asked["state"]] or "code" not in answer:
            raise DemoError(f"{user.name} could not sign in: status {response.status}")
        return await self._redeem(
            user,
            grant_type="authorization_code",
            client_id=WEB_APP.client_id,
            redirect_uri=REDIRECT_URI,
            code=answer["code"][0],
            code_verifier=verifier,
        )

    async def _redeem(self, user: User, **form: str) -> str:
        url = f"{self._entra}/{user.tenant.tenant_id}/oauth2/v2.0/token"
        # Entra lets only a page in a browser redeem the code of a single-page app.
        headers = {"Origin": REDIRECT_URI.rstrip("/")} if "code" in form else {}
        async with self._session.post(url, data=form, headers=headers) as response:
            answer: dict[str, Any] = await response.json()
        if "access_token" not in answer:
            raise DemoError(f"Entra returned no token: {answer.get('error_description')}")
        return str(answer["access_token"])

    async def _issue(
        self, method: str, access_token: str, body: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        status, answer = await self._call(method, access_token, body)
        if status != HTTPStatus.OK:
            raise DemoError(f"{method} /api/token: status {status}, {answer}")
        claims = _claims(answer["token"])
        print(f"  {method} /api/token", *([json.dumps(body)] if body else []))
        print(f"    identity {answer['user']['communicationUserId']}")
        print(f"    scopes   {claims['acsScope']}")
        print(f"    expires  {answer['expiresOn']}")
        return answer

    async def _refuse(self, what: str, access_token: str, code: str) -> None:
        status, answer = await self._call("GET", access_token)
        print(f"  {what}: {status} {answer.get('code')}")
        print(f"    {answer.get('detail')}")
        if answer.get("code") != code:
            raise DemoError(f"{what} was answered with {status}, not refused as {code}")

    async def _call(
        self, method: str, access_token: str, body: dict[str, Any] | None = None
    ) -> tuple[int, dict[str, Any]]:
        headers = {"Authorization": f"Bearer {access_token}"}
        url = f"{self._functions}/api/token"
        async with self._session.request(method, url, json=body, headers=headers) as response:
            return response.status, await response.json(content_type=None)


def _claims(token: str) -> dict[str, Any]:
    """Read a token of the local ACS. Apps must not do this: the format may change."""
    payload = token.split(".")[1]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=="))
    return claims
