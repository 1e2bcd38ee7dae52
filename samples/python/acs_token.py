"""Sign in with Entra, get an ACS access token from the broker, and keep it fresh.

BROKER_URL=https://... BROKER_CLIENT_ID=... CLIENT_ID=... python acs_token.py
"""

from __future__ import annotations

import os
import random
import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import requests
from azure.communication.chat import CommunicationTokenCredential
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError
from azure.identity import InteractiveBrowserCredential

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential

# No answer may pass, too, and a 502 only from the host: the broker's own would stay the same.
TRY_AGAIN = {None, 429, 502, 503, 504}
PATIENCE_SECONDS = 45
STILL_GOOD_SECONDS = 60


class BrokerError(Exception):
    """The broker's refusal; the message is for people."""

    def __init__(
        self, status: int | None, problem: dict[str, Any], retry_after: float | None
    ) -> None:
        code, detail = problem.get("code"), problem.get("detail", "The service cannot be reached.")
        answer = " ".join(str(part) for part in (status, code) if part) or "no answer"
        trace = f", trace id {problem['traceId']}" if "traceId" in problem else ""
        super().__init__(f"{detail} ({answer}{trace})")
        self.code = code
        self.claims: str | None = problem.get("claims")
        self.may_pass = status in TRY_AGAIN and not (status == 502 and code)  # noqa: PLR2004
        self.retry_after = retry_after


class Broker:
    """A token refresher: each call returns an ACS token that is good for some time."""

    def __init__(self, url: str, client_id: str, sign_in: TokenCredential) -> None:
        self._url = f"{url}/api/token"
        self._scope = f"api://{client_id}/access_as_user"
        self._sign_in = sign_in
        self._last = AccessToken("", 0)

    def __call__(self) -> AccessToken:
        """Return a new ACS token or, if the broker cannot serve now, the last one again."""
        entra = self._entra_token()
        give_up, pause, challenged = time.monotonic() + PATIENCE_SECONDS, 0.25, False
        while True:
            try:
                self._last = self._ask(entra.token)
            except BrokerError as error:
                if error.claims and not challenged:
                    # Without the claims, MSAL would return the same token from its cache.
                    entra = self._entra_token(error.claims)
                    self._last, challenged = AccessToken("", 0), True
                    continue
                if not error.may_pass:
                    raise
                if self._last.expires_on - time.time() > STILL_GOOD_SECONDS:
                    return self._last  # The SDK asks again after half of the remaining time.
                pause = max(pause * 2, error.retry_after or 0) * random.uniform(1, 1.5)  # noqa: S311
                if time.monotonic() + pause > give_up:
                    raise
                time.sleep(pause)
            else:
                return self._last

    def _entra_token(self, claims: str | None = None) -> AccessToken:
        # `enable_cae` tells Entra and APIs that this app can handle claims challenges (`cp1`).
        return self._sign_in.get_token(self._scope, claims=claims, enable_cae=True)

    def _ask(self, entra_token: str) -> AccessToken:
        headers = {"Authorization": f"Bearer {entra_token}"}
        try:
            answer = requests.get(self._url, headers=headers, timeout=10)
        except (requests.ConnectionError, requests.Timeout) as exc:
            raise BrokerError(None, {}, None) from exc
        is_json = "json" in answer.headers.get("Content-Type", "")  # The host's own errors are not.
        body: dict[str, Any] = answer.json() if is_json else {}
        if not answer.ok:
            seconds = answer.headers.get("Retry-After", "")
            raise BrokerError(answer.status_code, body, float(seconds) if seconds else None)
        expires_on = datetime.fromisoformat(body["expiresOn"])
        return AccessToken(body["token"], int(expires_on.timestamp()))


def main() -> int:
    """Show until when the token is good."""
    if not all(os.environ.get(name) for name in ("BROKER_URL", "BROKER_CLIENT_ID", "CLIENT_ID")):
        print("Set BROKER_URL, BROKER_CLIENT_ID and CLIENT_ID.", file=sys.stderr)
        return 1
    authority = os.environ.get("AZURE_AUTHORITY_HOST")  # Of the local stack, for example.
    sign_in = InteractiveBrowserCredential(
        client_id=os.environ["CLIENT_ID"],
        tenant_id=os.environ.get("TENANT_ID", "organizations"),
        disable_instance_discovery=authority is not None,
    )
    broker = Broker(os.environ["BROKER_URL"], os.environ["BROKER_CLIENT_ID"], sign_in)
    try:
        first = broker()
    except (BrokerError, ClientAuthenticationError) as error:
        print(f"No token: {error}", file=sys.stderr)
        return 1
    with CommunicationTokenCredential(
        first.token, token_refresher=broker, proactive_refresh=True
    ) as credential:  # Pass it to `ChatClient(endpoint, credential)`.
        expires_on = datetime.fromtimestamp(credential.get_token().expires_on).astimezone()
        print(f"An ACS token, good until {expires_on:%H:%M}, and refreshed ten minutes before.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
