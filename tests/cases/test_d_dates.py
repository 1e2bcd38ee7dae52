"""D: the dates of a token."""

from __future__ import annotations

import asyncio
import time
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from local.entra.directory import CONTOSO
from shared.errors import InvalidTokenError
from tests.cases.catalogue import case
from tests.cases.service import named
from tests.running import table_of
from tests.tokens import parts_of, signed

if TYPE_CHECKING:
    from local.entra.emulator import EntraEmulator
    from shared.entra.access_tokens import AccessTokenValidator
    from tests.cases.service import Service

SKEW = 60
LONGEST = 28 * 3600
# What is not a date: PyJWT alone accepts several of them.
TEXTS = [
    "{now}",
    " {now} ",
    "{thousands}",
    "{arabic}",
    "{now}.0",
    "{iso}",
    "0x7fffffff",
    "",
    "null",
]
OTHERS: list[Any] = [True, False, [], {}, 0, -1, -(10**12), 1.5, 1e10]


def token(service: Service, **claims: Any) -> str:
    """Return a token of a new person that is good but for these claims."""
    return service.running.token_of_new_person(**claims)


def dated(service: Service, issued: int, not_before: int, expires: int) -> str:
    """Return a token with these dates, in seconds from now."""
    now = int(time.time())
    return token(service, iat=now + issued, nbf=now + not_before, exp=now + expires)


def not_dates(date: int) -> list[Any]:
    """Return what is not a date in a token, though some of it means this one."""
    arabic = str(date).translate(str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩"))
    forms = {"now": date, "thousands": f"{date:_}", "arabic": arabic}
    forms["iso"] = datetime.fromtimestamp(date, UTC).isoformat()
    return [*(text.format(**forms) for text in TEXTS), *OTHERS, float(date), [date], {"a": date}]


def odd_dates(service: Service, name: str, date: int) -> dict[str, str]:
    """Return tokens with each of these in a claim."""
    return {f"{name}: {value!r}": token(service, **{name: value}) for value in not_dates(date)}


def without(entra: EntraEmulator, name: str) -> dict[str, str]:
    """Return a token without a claim, and one in which it is null."""
    parts = parts_of(entra.issue_access_token(claims={"oid": str(uuid.uuid4()), name: 7}))
    null = parts.payload.replace(f'"{name}":7'.encode(), f'"{name}":null'.encode())
    return {
        f"no {name}": entra.issue_access_token(claims={name: None}),
        f"{name} is null": signed(entra.keys[0].private_key, parts.header, null),
    }


@case("D01", "exp over a minute ago, or exactly one: 401 invalid_token; less: 200")
async def test_D01_expired(service: Service, validator: AccessTokenValidator) -> None:
    """The second at the boundary passes before a request arrives, so the class is asked, too."""
    ages = {"61 s": -61, "an hour": -3600 + 1, "a year": -365 * 86400}
    variants = {
        age: dated(service, since - 3600, since - 3600, since) for age, since in ages.items()
    }
    await service.refuses(401, "invalid_token", variants)
    await service.accepts({"50 s": dated(service, -3600, -3600, -50)})

    now = int(time.time())
    for seconds, is_over in ((61, True), (60, True), (59, False), (1, False), (0, False)):
        text = token(service, iat=now - 3600, nbf=now - 3600, exp=now - seconds)
        when = datetime.fromtimestamp(now, UTC)
        with named(f"{seconds} s"):
            if is_over:
                with pytest.raises(InvalidTokenError, match="expired"):
                    await validator.validate(text, now=when)
            else:
                assert await validator.validate(text, now=when)


@case("D02", "no exp, or null: 401 invalid_token")
async def test_D02_no_exp(service: Service, entra: EntraEmulator) -> None:
    await service.refuses(401, "invalid_token", without(entra, "exp"))


@case("D03", "exp as text, in any notation: 401 invalid_token")
async def test_D03_exp_as_text(service: Service) -> None:
    odd = odd_dates(service, "exp", int(time.time()) + 3600)
    texts = {name: text for name, text in odd.items() if name.startswith("exp: '")}
    assert len(TEXTS) == len(texts)
    await service.refuses(401, "invalid_token", texts)


@case("D04", "exp with a fraction, or a boolean, list, object, 0 or less: 401 invalid_token")
async def test_D04_exp_of_another_type(service: Service) -> None:
    odd = odd_dates(service, "exp", int(time.time()) + 3600)
    others = {name: text for name, text in odd.items() if not name.startswith("exp: '")}
    await service.refuses(401, "invalid_token", others)


@case("D05", "exp in a year of 300 digits, or a lifetime over 28 hours: 401 invalid_token")
async def test_D05_lifetime(service: Service, validator: AccessTokenValidator) -> None:
    variants = {
        f"{exp!r}"[:12]: token(service, exp=exp)
        for exp in (10**300, 10**18, 2**63, 2**31 * 1000, 2**64, 9_999_999_999, 10**4299)
    }
    variants["28 hours and two minutes"] = dated(service, 0, 0, LONGEST + 120)
    variants["a year"] = dated(service, 0, 0, 365 * 86400)
    variants["milliseconds"] = token(service, exp=int(time.time() + 3600) * 1000)
    # The lifetime counts from `iat`, whatever `nbf` says.
    variants["nbf as late as may be"] = dated(service, -3600, 30, LONGEST - 3600 + 120)
    await service.refuses(401, "invalid_token", variants)

    now = int(time.time())
    for over, is_too_long in ((61, True), (60, False)):
        text = token(service, iat=now, nbf=now, exp=now + LONGEST + over)
        when = datetime.fromtimestamp(now, UTC)
        if is_too_long:
            with pytest.raises(InvalidTokenError, match="lifetime"):
                await validator.validate(text, now=when)
        else:
            assert await validator.validate(text, now=when)


@case("D06", "nbf over a minute ahead, missing, or not a date: 401 invalid_token")
async def test_D06_not_before(service: Service, entra: EntraEmulator) -> None:
    variants = without(entra, "nbf") | odd_dates(service, "nbf", int(time.time()) - 60)
    variants["two minutes ahead"] = dated(service, 0, 120, 3600)
    variants["an hour ahead"] = dated(service, 0, 3600, 7200)
    await service.refuses(401, "invalid_token", variants)
    await service.accepts({"40 s ahead": dated(service, 0, 40, 3600)})


@case("D07", "iat over a minute ahead, missing, or not a date: 401 invalid_token")
async def test_D07_issued_at(service: Service, entra: EntraEmulator) -> None:
    variants = without(entra, "iat") | odd_dates(service, "iat", int(time.time()) - 60)
    variants["two minutes ahead"] = dated(service, 120, 0, 3600)
    variants["an hour ahead"] = dated(service, 3600, 0, 7200)
    await service.refuses(401, "invalid_token", variants)
    await service.accepts({"40 s ahead": dated(service, 40, 0, 3600)})


@case("D08", "exp no later than nbf or iat: 401 invalid_token")
async def test_D08_order_of_dates(service: Service) -> None:
    await service.refuses(
        *(401, "invalid_token"),
        {
            "exp before nbf": dated(service, -100, 30, 20),
            "exp at nbf": dated(service, -100, 30, 30),
            "exp before iat": dated(service, 30, -100, 20),
            "exp at iat": dated(service, 30, -100, 30),
            "all the same": dated(service, 0, 0, 0),
            "backwards": dated(service, 20, 10, 0),
            "over, and backwards": dated(service, -10, -20, -30),
        },
    )


@case("D10", "a token that runs out while ACS is asked: 200 or 401, never 500")
async def test_D10_expires_meanwhile(service: Service) -> None:
    acs = service.running.stack.acs
    person = str(uuid.uuid4())
    await service.accepts({"before": token(service, oid=person)})
    acs.faults.fail_next("issue", delay=1.2, times=10)
    answers = []
    for _ in range(10):
        now = int(time.time())
        short = token(service, oid=person, iat=now - 3600, nbf=now - 3600, exp=now - SKEW + 1)
        answers.append(asyncio.create_task(service.app.get("/api/token", short)))
        await asyncio.sleep(0.1)
    for answer in await asyncio.gather(*answers):
        assert answer.status in {200, 401}, answer
        if answer.status == 401:
            service.check_refusal(answer, 401, "invalid_token", sent=[])
        else:
            assert acs.token_is_valid(answer.json["token"])


@case("D12", "issued before the person was signed out: 401 token_revoked, the row unchanged")
async def test_D12_revoked(service: Service) -> None:
    person = str(uuid.uuid4())
    before = token(service, oid=person)
    created = await service.app.get("/api/token", before)
    assert 200 == created.status
    assert 204 == (await service.app.post("/api/token/revoke", before)).status

    def row() -> dict[str, Any]:
        with table_of(service.running, "IdentityMappings") as table:
            return dict(table.get_entity(f"{CONTOSO.tenant_id}_{person[:2]}", person))

    stored = await asyncio.to_thread(row)
    # The first answer may have asked ACS for a token early, and thrown it away.
    answer = await service.app.get("/api/token", before)
    service.check_refusal(answer, 401, "token_revoked", sent=[before])
    issued = service.running.stack.acs.faults.count("issue")
    for path in ("/api/token", "/api/user"):
        answer = await service.app.get(path, before)
        service.check_refusal(answer, 401, "token_revoked", sent=[before])
    assert issued == service.running.stack.acs.faults.count("issue")
    assert stored == await asyncio.to_thread(row)
    assert not service.running.stack.acs.token_is_valid(created.json["token"])
