"""Clouds other than the public one, under their real host names: over TLS, on loopback."""

from __future__ import annotations

import socket
import ssl
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp
import pytest
import trustme
from aiohttp.abc import AbstractResolver, ResolveResult

from local.entra.directory import ADA, CONTOSO, FABRIKAM
from local.entra.emulator import EntraEmulator
from local.serving.application import serve
from shared.entra.access_tokens import AccessTokenValidator
from shared.entra.signing_keys import SigningKeys
from shared.errors import InvalidTokenError
from shared.identifiers import Person

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime

    from local.entra.tokens import SigningKey
    from shared.settings import EntraSettings

PUBLIC = "https://login.microsoftonline.com"
GOVERNMENT = "https://login.microsoftonline.us"
CHINA = "https://login.partner.microsoftonline.cn"
EXTERNAL_ID = f"https://{CONTOSO.tenant_id}.ciamlogin.com"


class ToLoopback(AbstractResolver):
    """Resolves every host to one port of this machine."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        del port, family
        return [
            ResolveResult(
                hostname=host,
                host="127.0.0.1",
                port=self._port,
                family=socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
        ]

    async def close(self) -> None:
        """Nothing is open."""


@asynccontextmanager
async def cloud(
    authority: str, settings: EntraSettings, keys: list[SigningKey]
) -> AsyncIterator[tuple[EntraEmulator, AccessTokenValidator]]:
    """Serve an Entra under the host of a cloud, and put the validator for it together."""
    entra = EntraEmulator(keys=keys)
    entra.url = authority
    issuer = trustme.CA()
    server, client = (ssl.SSLContext(p) for p in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT))
    issuer.issue_cert(urlsplit(authority).netloc).configure_cert(server)
    issuer.configure_trust(client)
    settings = replace(settings, authority=authority, tenant_ids=frozenset({CONTOSO.tenant_id}))
    async with serve(entra.application(), tls=server) as url:
        connector = aiohttp.TCPConnector(resolver=ToLoopback(urlsplit(url).port or 0), ssl=client)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
            store = SigningKeys(session=session, authority=authority, keys_of=settings.keys_of)
            yield entra, AccessTokenValidator(settings=settings, keys=store)
            store.close()


@pytest.mark.parametrize("authority", [PUBLIC, GOVERNMENT, CHINA, EXTERNAL_ID])
async def test_own_tokens(
    authority: str, entra_settings: EntraSettings, entra_keys: list[SigningKey], now: datetime
) -> None:
    """The keys come from the cloud's own host, and a token with its issuer is good."""
    async with cloud(authority, entra_settings, entra_keys) as (entra, validator):
        token = entra.issue_access_token()

        caller = await validator.validate(token, now=now)

        assert Person(ADA.tenant.tenant_id, ADA.object_id) == caller.person
        assert 1 == entra.faults.count("jwks")


OTHERS = {
    "public cloud": f"{PUBLIC}/{CONTOSO.tenant_id}/v2.0",
    "Government": f"{GOVERNMENT}/{CONTOSO.tenant_id}/v2.0",
    "China": f"{CHINA}/{CONTOSO.tenant_id}/v2.0",
    "External ID": f"{EXTERNAL_ID}/{CONTOSO.tenant_id}/v2.0",
    "External ID by name": f"https://contoso.ciamlogin.com/{CONTOSO.tenant_id}/v2.0",
    "External ID of another": f"https://{FABRIKAM.tenant_id}.ciamlogin.com/{CONTOSO.tenant_id}/v2.0",
    "B2C": f"https://contoso.b2clogin.com/{CONTOSO.tenant_id}/v2.0/",
    "AD FS": "https://adfs.contoso.example/adfs",
}


@pytest.mark.parametrize("authority", [PUBLIC, GOVERNMENT, CHINA, EXTERNAL_ID])
async def test_tokens_of_others(
    authority: str, entra_settings: EntraSettings, entra_keys: list[SigningKey], now: datetime
) -> None:
    """An issuer that the settings do not name is refused, even with a good signature."""
    async with cloud(authority, entra_settings, entra_keys) as (entra, validator):
        own = f"{authority}/{CONTOSO.tenant_id}/v2.0"
        for issuer in {*OTHERS.values()} - {own}:
            token = entra.issue_access_token(claims={"iss": issuer})
            with pytest.raises(InvalidTokenError, match="iss is not the issuer of tid"):
                await validator.validate(token, now=now)


@pytest.mark.parametrize(
    ("authority", "issuer", "refused"),
    [
        (GOVERNMENT, "https://sts.windows.net", None),
        (CHINA, "https://sts.chinacloudapi.cn", None),
        (CHINA, "https://sts.windows.net", "iss is not the issuer of tid"),
        (EXTERNAL_ID, "https://sts.windows.net", "not a version that this authority issues"),
        (EXTERNAL_ID, EXTERNAL_ID, "not a version that this authority issues"),
        (EXTERNAL_ID, "None", "not a version that this authority issues"),
    ],
)
async def test_version_1(
    authority: str,
    issuer: str,
    refused: str | None,
    entra_settings: EntraSettings,
    entra_keys: list[SigningKey],
    now: datetime,
) -> None:
    """Each sovereign cloud has its v1 issuer; External ID has none."""
    changes: dict[str, Any] = {"iss": f"{issuer}/{CONTOSO.tenant_id}/"}
    async with cloud(authority, entra_settings, entra_keys) as (entra, validator):
        token = entra.issue_access_token(version=1, claims=changes)
        if refused is None:
            await validator.validate(token, now=now)
            return
        with pytest.raises(InvalidTokenError, match=refused):
            await validator.validate(token, now=now)
