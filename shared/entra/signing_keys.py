"""Fetches and caches Entra's signing keys, and refreshes them in the background.

A token with a known key never waits. There is one fetch at a time, for all who wait for it. If it
fails, the last good set stays, for a day at most. Keys that Entra withdraws are gone with the next
refresh.
https://learn.microsoft.com/entra/identity-platform/signing-key-rollover
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections import OrderedDict
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from shared import audit
from shared.documents import read_object
from shared.errors import InvalidTokenError, KeysUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    import aiohttp

# All times are in seconds.
REFRESH_INTERVAL = 3600
RETRY_FIRST, RETRY_LAST = 5, 300
MAX_AGE = 24 * 3600
STALE = 2 * 3600  # From this age on, audit lines show it: the hourly refresh keeps failing.
FRESH = 300  # A key id missing from a set younger than this does not exist.
FETCH_DEADLINE = 3
WAIT_FOR_FETCH = 2
BURST = 3  # So many fetches on demand at once, ...
REFILL = 300  # ... and one more after this time.
UNKNOWN_FOR = 60
MAX_UNKNOWN = 1024
MAX_DOCUMENT_BYTES = 256 * 1024
MAX_KEYS = 100

KEY_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_RSA_BITS = range(2048, 4096 + 1)
_RSA_EXPONENT = 65537


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A public key, and the issuer that Entra says it signs for (may hold `{tenantid}`)."""

    public_key: RSAPublicKey
    issuer: str


class SigningKeys:
    """The keys of one tenant, or of all organisations, at one Entra authority.

    Args:
        session: used for Entra's host only.
        authority: an origin such as `https://login.microsoftonline.com`.
        keys_of: a tenant id, or `organizations`.
        refresh_interval: seconds between refreshes in the background.
        clock: returns the current Unix time.
    """

    def __init__(
        self,
        *,
        session: aiohttp.ClientSession,
        authority: str,
        keys_of: str,
        refresh_interval: float = REFRESH_INTERVAL,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._session = session
        self._authority = authority
        self._keys_of = keys_of
        self._refresh_interval = refresh_interval
        self._clock = clock
        self._keys: dict[str, SigningKey] = {}
        self._fetched_at = float("-inf")
        self._last_fetch_failed = False
        self._fetching: asyncio.Task[None] | None = None
        self._refresher: asyncio.Task[None] | None = None
        self._budget, self._budget_since = float(BURST), clock()
        self._unknown: OrderedDict[str, float] = OrderedDict()

    async def get(self, key_id: str) -> SigningKey:
        """Return the key with an id.

        Raises:
            InvalidTokenError: Entra has no such key.
            KeysUnavailableError: Entra cannot be asked whether it has such a key.
        """
        if self._keys and self._age() > STALE:
            # Shown with each request, because the refresher's own lines may not reach the log.
            audit.note(keys_age_hours=round(self._age() / 3600, 1))
        if key_id not in self._keys or self._too_old():
            with audit.timed("keys_ms"):
                await self._look_for(key_id)
        try:
            return self._keys[key_id]
        except KeyError:
            raise InvalidTokenError("signed by a key that Entra does not have") from None

    async def load(self) -> None:
        """Make sure that there is a usable set of keys, or raise KeysUnavailableError."""
        if self._too_old():
            await self._refresh_on_demand()
        self._require_keys()

    def close(self) -> None:
        """Stop refreshing in the background."""
        for task in (self._refresher, self._fetching):
            if task is not None:
                task.cancel()

    def _age(self) -> float:
        return self._clock() - self._fetched_at

    def _too_old(self) -> bool:
        return self._age() > MAX_AGE

    def _require_keys(self) -> None:
        if self._too_old():
            raise KeysUnavailableError("no signing keys")

    async def _look_for(self, key_id: str) -> None:
        """Fetch the set for an id that is not in it; return only if the set can be relied on."""
        if self._unknown.get(key_id, 0) < self._clock():
            await self._refresh_on_demand()
        self._require_keys()
        if key_id in self._keys:
            return
        if self._last_fetch_failed or self._age() > FRESH:
            raise KeysUnavailableError("an unknown signing key, and Entra cannot be asked")
        self._unknown[key_id] = self._clock() + UNKNOWN_FOR
        if len(self._unknown) > MAX_UNKNOWN:
            self._unknown.popitem(last=False)

    async def _refresh_on_demand(self) -> None:
        """Join the running fetch, or start one if the budget allows, and wait for it briefly.

        Raises:
            KeysUnavailableError: the fetch has not finished in time.
        """
        if self._fetching is None and not self._spend():
            return
        fetching = self._fetch_once()
        if self._refresher is None:
            self._refresher = asyncio.create_task(self._keep_fresh())  # Joins this fetch.
        # `wait`, unlike `wait_for`, does not cancel the fetch, which others may be waiting for.
        done, _ = await asyncio.wait([fetching], timeout=WAIT_FOR_FETCH)
        if not done:
            raise KeysUnavailableError("Entra is slow to answer")

    def _spend(self) -> bool:
        """Take one fetch from the budget, if there is one left. Failed fetches count, too."""
        now = self._clock()
        self._budget = min(BURST, self._budget + (now - self._budget_since) / REFILL)
        self._budget_since = now
        if self._budget < 1:
            return False
        self._budget -= 1
        return True

    async def _keep_fresh(self) -> None:
        """Refresh for as long as the process runs; these fetches are not in the budget."""
        retry = float(RETRY_FIRST)
        while True:
            await asyncio.wait([self._fetch_once()])
            if self._last_fetch_failed:
                await asyncio.sleep(random.uniform(retry / 2, retry))  # noqa: S311 - jitter
                retry = min(2 * retry, RETRY_LAST)
            else:
                retry = float(RETRY_FIRST)
                jitter = random.uniform(0.9, 1.1)  # noqa: S311 - as above
                await asyncio.sleep(self._refresh_interval * jitter)

    def _fetch_once(self) -> asyncio.Task[None]:
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._fetch())
        return self._fetching

    async def _fetch(self) -> None:
        """Replace the set with the one that Entra has now; keep the old set if that fails."""
        try:
            async with asyncio.timeout(FETCH_DEADLINE):
                keys = await self._download()
        except Exception as exc:  # noqa: BLE001 - the old set stays, whatever went wrong
            self._last_fetch_failed = True
            hours = None if not self._keys else round(self._age() / 3600, 1)
            fields = {"reason": _reason(exc), "age_hours": hours}
            audit.record("signing_keys_not_refreshed", fields, level=logging.ERROR)
        else:
            replaced = bool(self._keys) and self._keys.keys().isdisjoint(keys)
            self._keys, self._fetched_at, self._last_fetch_failed = keys, self._clock(), False
            audit.record("signing_keys_refreshed", {"keys": len(keys), "all_new": replaced})
        finally:
            self._fetching = None

    async def _download(self) -> dict[str, SigningKey]:
        path = f"{self._keys_of}/v2.0/.well-known/openid-configuration"
        metadata = await self._get(f"{self._authority}/{path}")
        every_tenant = self._keys_of == "organizations"
        issuer = f"{self._authority}/{'{tenantid}' if every_tenant else self._keys_of}/v2.0"
        if metadata.get("issuer") != issuer:
            raise ValueError("metadata of another issuer")
        location = metadata.get("jwks_uri")
        if not isinstance(location, str) or not location.startswith(f"{self._authority}/"):
            raise ValueError("keys on another host")
        return signing_keys_from(
            await self._get(location),
            cloud=metadata.get("cloud_instance_name"),
            # In the set for all tenants, each key must name its issuer; in a tenant's own set, the
            # tenant is the issuer.
            default_issuer=None if every_tenant else issuer,
        )

    async def _get(self, url: str) -> dict[str, Any]:
        async with self._session.get(
            url, allow_redirects=False, headers={"Accept-Encoding": "identity"}
        ) as response:
            if response.status != HTTPStatus.OK:
                raise ValueError(f"status {response.status}")
            return await read_object(response, max_bytes=MAX_DOCUMENT_BYTES)


def signing_keys_from(
    document: dict[str, Any], *, cloud: object, default_issuer: str | None
) -> dict[str, SigningKey]:
    """Return the usable RS256 keys of a JWK set (RFC 7517), by key id.

    Raises:
        ValueError: it is not a JWK set, has a key id twice, a private key, or no usable key.
    """
    members = document.get("keys")
    if not isinstance(members, list) or len(members) > MAX_KEYS:
        raise ValueError("not a set of keys")
    if not all(isinstance(jwk, dict) and _PRIVATE_MEMBERS.isdisjoint(jwk) for jwk in members):
        raise ValueError("not a set of public keys")
    key_ids = [jwk["kid"] for jwk in members if "kid" in jwk]
    if any(key_ids.count(key_id) > 1 for key_id in key_ids):
        raise ValueError("a key id twice")
    keys = {}
    for jwk in members:
        try:
            keys[jwk["kid"]] = _signing_key({"issuer": default_issuer, **jwk}, cloud)
        except Exception as exc:  # noqa: BLE001 - a key that makes PyJWT stumble is not usable
            audit.record("signing_key_rejected", {"reason": _reason(exc)}, level=logging.WARNING)
    if not keys:
        raise ValueError("no usable key")
    return keys


def _signing_key(jwk: dict[str, Any], cloud: object) -> SigningKey:
    if not KEY_ID.fullmatch(jwk["kid"]):
        raise ValueError("kid is not a key id")
    if jwk.get("kty") != "RSA" or jwk.get("use", "sig") != "sig":
        raise ValueError("not an RSA key for signatures")
    if jwk.get("alg", "RS256") != "RS256" or "verify" not in jwk.get("key_ops", ["verify"]):
        raise ValueError("not a key for RS256")
    if jwk.get("cloud_instance_name", cloud) != cloud:
        raise ValueError("a key of another cloud")
    if not isinstance(jwk["issuer"], str):
        raise ValueError("a key without an issuer")  # noqa: TRY004 - every reason is a ValueError
    public_key = jwt.PyJWK(jwk, algorithm="RS256").key
    if not isinstance(public_key, RSAPublicKey) or public_key.key_size not in _RSA_BITS:
        raise ValueError("not an RSA key of 2048 to 4096 bits")
    if public_key.public_numbers().e != _RSA_EXPONENT:
        raise ValueError("an exponent other than 65537")
    return SigningKey(public_key, jwk["issuer"])


def _reason(exc: Exception) -> str:
    """Return the message of our own error, or only the type of another, whose text is not safe."""
    return str(exc) if type(exc) is ValueError else type(exc).__name__
