"""The device code flow: a person approves in a browser what another device asks for.

https://learn.microsoft.com/entra/identity-platform/v2-oauth2-device-code
"""

from __future__ import annotations

import secrets
import string
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from local.entra.errors import EntraError

if TYPE_CHECKING:
    from local.entra.objects import App
    from local.entra.requests import SignIn

LIFETIME = timedelta(minutes=15)
POLL_SECONDS = 5
CODE_LENGTH = 9


@dataclass(slots=True)
class DeviceRequest:
    """What a device asks for, and how somebody has answered."""

    client: App
    scope: str
    device_code: str = field(default_factory=lambda: secrets.token_urlsafe(48))
    user_code: str = field(
        default_factory=lambda: "".join(
            secrets.choice(string.ascii_uppercase) for _ in range(CODE_LENGTH)
        )
    )
    at: float = field(default_factory=time.time)
    sign_in: SignIn | None = None
    declined: bool = False


class Devices:
    """The devices that wait for somebody to sign in."""

    def __init__(self) -> None:
        self._requests: dict[str, DeviceRequest] = {}

    def add(self, client: App, scope: str) -> DeviceRequest:
        """Remember what a device asks for."""
        request = DeviceRequest(client, scope)
        self._requests[request.device_code] = request
        return request

    def find(self, user_code: str) -> DeviceRequest | None:
        """Find the request that waits for an answer under the code that a person typed in."""
        wanted = user_code.strip().upper()
        waiting = (
            each
            for each in self._requests.values()
            if each.user_code == wanted
            and not (each.sign_in or each.declined)
            and time.time() - each.at <= LIFETIME.total_seconds()
        )
        return next(waiting, None)

    def redeem(self, device_code: str, client: App) -> SignIn:
        """Return the sign-in that a device has been waiting for.

        Raises:
            EntraError: nobody has signed in yet, or nobody will.
        """
        request = self._requests.get(device_code)
        if request is None or request.client.client_id != client.client_id:
            raise EntraError("bad_verification_code", 70019, "The device code is not valid.")
        if request.declined:
            message = "User declined to authorize the client."
            raise EntraError("authorization_declined", 70018, message)
        if time.time() - request.at > LIFETIME.total_seconds():
            message = "The provided device code has expired."
            raise EntraError("expired_token", 70020, message)
        if request.sign_in is None:
            message = "OAuth 2.0 device flow error. Authorization is pending. Continue polling."
            raise EntraError("authorization_pending", 70016, message)
        del self._requests[device_code]
        return request.sign_in
