from __future__ import annotations

import asyncio
import gzip
import json
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from local.entra.directory import CONTOSO
from local.entra.emulator import EntraEmulator
from local.entra.tokens import CLOUD
from local.entra.tokens import SigningKey as EntraKey
from local.serving.application import serve
from local.serving.certificates import Certificates
from shared import audit
from shared.entra import signing_keys
from shared.entra.signing_keys import SigningKeys, signing_keys_from
from shared.errors import InvalidTokenError, KeysUnavailableError
from tests.emulated import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.emulated import Clock

METADATA, KEYS = "openid_configuration", "jwks"
DAY = 24 * 3600


@pytest.fixture
async def entra(entra_keys: list[EntraKey]) -> AsyncIterator[EntraEmulator]:
    """An Entra of the test's own."""
    emulator = EntraEmulator(keys=entra_keys)
    async with serve(emulator.application()) as url:
        emulator.url = url
        yield emulator


@pytest.fixture
async def key_store(clock: Clock) -> AsyncIterator[Callable[..., SigningKeys]]:
    """Return a function that makes a key store for an authority."""
    made: list[SigningKeys] = []
    # As shared/services.py builds it.
    async with aiohttp.ClientSession(auto_decompress=False) as session:

        def make(authority: str, **options: Any) -> SigningKeys:
            given: dict[str, Any] = {
                "keys_of": "organizations",
                "clock": lambda: clock.seconds,
                **options,
            }
            made.append(SigningKeys(session=session, authority=authority, **given))
            return made[-1]

        yield make
        for store in made:
            store.close()


@pytest.fixture
def keys(entra: EntraEmulator, key_store: Callable[..., SigningKeys]) -> SigningKeys:
    return key_store(entra.url)


@pytest.fixture
def known(entra: EntraEmulator) -> str:
    """The id of a key that Entra publishes from the start."""
    return entra.keys[0].kid


@pytest.fixture
def new_key() -> EntraKey:
    return EntraKey.generate()


def fetches(entra: EntraEmulator) -> tuple[int, int]:
    """Return how often metadata and keys were asked for."""
    return entra.faults.count(METADATA), entra.faults.count(KEYS)


class TestFetching:
    """Who has to wait, and how often Entra is asked."""

    async def test_cold_burst(self, entra: EntraEmulator, keys: SigningKeys, known: str) -> None:
        """A hundred requests at a cold start share one fetch of each document."""
        entra.faults.fail_next(KEYS, delay=0.1)

        found = await asyncio.gather(*(keys.get(known) for _ in range(100)))

        assert (1, 1) == fetches(entra)
        numbers = entra.keys[0].private_key.public_key().public_numbers()
        assert {numbers} == {key.public_key.public_numbers() for key in found}
        assert {f"{entra.url}/{{tenantid}}/v2.0"} == {key.issuer for key in found}

    async def test_known_key_never_waits(
        self, entra: EntraEmulator, keys: SigningKeys, known: str
    ) -> None:
        """A known key is returned at once, even while the set is being fetched."""
        await keys.get(known)
        entra.faults.fail_next(KEYS, delay=1)
        fetching = asyncio.create_task(keys.get("another"))
        await until(lambda: entra.faults.count(KEYS) == 2)

        async with asyncio.timeout(0.05):
            await keys.get(known)

        assert not fetching.done()
        fetching.cancel()

    async def test_new_key(
        self, entra: EntraEmulator, keys: SigningKeys, known: str, new_key: EntraKey
    ) -> None:
        """A hundred callers with tokens of a new key share one fetch, and all are served."""
        await keys.get(known)
        new = entra.roll_keys(new=new_key)

        await asyncio.gather(*(keys.get(new) for _ in range(100)))

        assert (2, 2) == fetches(entra)

    async def test_first_caller_leaves(
        self, entra: EntraEmulator, keys: SigningKeys, known: str
    ) -> None:
        """The fetch goes on for the others if the caller that started it is cancelled."""
        entra.faults.fail_next(KEYS, delay=0.2)
        first, *others = [asyncio.create_task(keys.get(known)) for _ in range(5)]
        await until(lambda: entra.faults.count(KEYS) == 1)
        first.cancel()

        await asyncio.gather(*others)

        assert first.cancelled()
        assert (1, 1) == fetches(entra)

    async def test_waits_at_most_two_seconds(
        self, entra: EntraEmulator, keys: SigningKeys, known: str
    ) -> None:
        """A caller gets 503 while a slow fetch goes on; its result serves the next caller."""
        entra.faults.fail_next(KEYS, delay=2.5)
        async with asyncio.timeout(2.45):
            with pytest.raises(KeysUnavailableError):
                await keys.get(known)
        await asyncio.sleep(0.7)

        await keys.get(known)

        assert (1, 1) == fetches(entra)

    async def test_cannot_tell_while_fetching(
        self, entra: EntraEmulator, keys: SigningKeys, known: str, new_key: EntraKey
    ) -> None:
        """A new key is not refused as unknown as long as the answer is outstanding."""
        await keys.get(known)
        new = entra.roll_keys(new=new_key)
        entra.faults.fail_next(KEYS, delay=2.3)

        with pytest.raises(KeysUnavailableError):
            await keys.get(new)

    async def test_withdrawn_key(
        self, entra: EntraEmulator, keys: SigningKeys, known: str, new_key: EntraKey
    ) -> None:
        """A key that Entra withdraws is gone with the next refresh."""
        await keys.get(known)
        new = entra.roll_keys(keep=0, new=new_key)
        await keys.get(new)

        with pytest.raises(InvalidTokenError):
            await keys.get(known)

    async def test_refreshes_in_the_background(
        self,
        entra: EntraEmulator,
        key_store: Callable[..., SigningKeys],
        known: str,
        new_key: EntraKey,
    ) -> None:
        """Without a request, withdrawn keys go and new ones come."""
        keys = key_store(entra.url, refresh_interval=0.05)
        await keys.get(known)
        new = entra.roll_keys(keep=0, new=new_key)
        before = entra.faults.count(KEYS)
        await until(lambda: entra.faults.count(KEYS) >= before + 2)

        async with asyncio.timeout(0.05):
            await keys.get(new)
        with pytest.raises(InvalidTokenError):
            await keys.get(known)

    async def test_keys_of_one_tenant(
        self, entra: EntraEmulator, key_store: Callable[..., SigningKeys], known: str
    ) -> None:
        """The keys of a tenant's own document sign for that tenant."""
        keys = key_store(entra.url, keys_of=CONTOSO.tenant_id)

        assert entra.issuer(CONTOSO.tenant_id) == (await keys.get(known)).issuer

    async def test_load(self, entra: EntraEmulator, keys: SigningKeys) -> None:
        """Readiness fetches once, and says when it could not."""
        entra.faults.fail_next(KEYS, status=503)
        with pytest.raises(KeysUnavailableError):
            await keys.load()

        await keys.load()
        await keys.load()

        assert 2 == entra.faults.count(KEYS)


class TestUnknownIds:
    """A flood of unknown key ids costs Entra next to nothing."""

    async def test_flood(self, entra: EntraEmulator, keys: SigningKeys, known: str) -> None:
        """Entra healthy: unknown ids are refused after three fetches; known ones are served."""
        for position in range(200):
            with pytest.raises(InvalidTokenError):
                await keys.get(f"unknown-{position}")

        assert 3 >= entra.faults.count(KEYS)
        await keys.get(known)

    async def test_flood_at_once(self, entra: EntraEmulator, keys: SigningKeys) -> None:
        """The same, all together at a cold start."""
        outcomes = await asyncio.gather(
            *(keys.get(f"unknown-{position}") for position in range(200)), return_exceptions=True
        )

        assert {InvalidTokenError} == {type(outcome) for outcome in outcomes}
        assert 3 >= entra.faults.count(KEYS)

    async def test_flood_while_entra_is_down(self, entra: EntraEmulator, keys: SigningKeys) -> None:
        """Entra down: all get 503, and failed fetches count against the budget."""
        entra.faults.fail_next(METADATA, status=503, times=1000)
        for position in range(200):
            with pytest.raises(KeysUnavailableError):
                await keys.get(f"unknown-{position}")

        assert 3 >= entra.faults.count(METADATA)

    async def test_flood_while_keys_are_good(
        self, entra: EntraEmulator, keys: SigningKeys, known: str, clock: Clock
    ) -> None:
        """Entra down, keys an hour old: unknown ids get 503, known ones are served."""
        await keys.get(known)
        clock.advance(hours=1)
        entra.faults.fail_next(METADATA, status=503, times=1000)
        for position in range(50):
            with pytest.raises(KeysUnavailableError):
                await keys.get(f"unknown-{position}")

        await keys.get(known)
        assert 1 + 3 >= entra.faults.count(METADATA)

    async def test_sustained_flood(
        self, entra: EntraEmulator, keys: SigningKeys, clock: Clock
    ) -> None:
        """In an hour of it, there is one fetch in five minutes after the first three."""
        for position in range(360):
            with pytest.raises(InvalidTokenError):
                await keys.get(f"unknown-{position}")
            clock.advance(seconds=10)

        assert 3 + 3600 // 300 >= entra.faults.count(KEYS)

    async def test_flood_before_a_rollover(
        self,
        entra: EntraEmulator,
        key_store: Callable[..., SigningKeys],
        known: str,
        new_key: EntraKey,
    ) -> None:
        """A budget that a flood has spent does not hold up the refresh in the background."""
        keys = key_store(entra.url, refresh_interval=0.3)
        for position in range(20):
            with pytest.raises(InvalidTokenError):
                await keys.get(f"unknown-{position}")
        new = entra.roll_keys(new=new_key)
        before = entra.faults.count(KEYS)
        await until(lambda: entra.faults.count(KEYS) >= before + 2)

        await keys.get(new)
        await keys.get(known)

    async def test_remembered(
        self, entra: EntraEmulator, keys: SigningKeys, known: str, clock: Clock
    ) -> None:
        """An id that was not found is not looked for again within a minute."""
        await keys.get(known)
        for _ in range(10):
            with pytest.raises(InvalidTokenError):
                await keys.get("unknown")
        assert 2 == entra.faults.count(KEYS)

        clock.advance(seconds=61)
        with pytest.raises(InvalidTokenError):
            await keys.get("unknown")
        assert 3 == entra.faults.count(KEYS)

    async def test_old_set_and_no_budget(
        self, keys: SigningKeys, known: str, clock: Clock, entra: EntraEmulator
    ) -> None:
        """If the set is not fresh and may not be fetched, an unknown id is 503, not refused."""
        await keys.get(known)
        entra.faults.fail_next(KEYS, status=500, times=3)
        for position in range(3):
            with pytest.raises(KeysUnavailableError):
                await keys.get(f"unknown-{position}")
        clock.advance(seconds=200)

        with pytest.raises(KeysUnavailableError):
            await keys.get("another")

    async def test_memory_is_bounded(
        self, keys: SigningKeys, entra: EntraEmulator, clock: Clock
    ) -> None:
        """After 1,024 unknown ids the oldest is forgotten, but the budget for fetches holds."""
        for position in range(signing_keys.MAX_UNKNOWN + 1):
            with pytest.raises(InvalidTokenError):
                await keys.get(f"unknown-{position}")
        before = entra.faults.count(KEYS)
        clock.advance(seconds=30)  # Not enough for the budget.

        for position in (1, 0):
            with pytest.raises(InvalidTokenError):
                await keys.get(f"unknown-{position}")
        assert before == entra.faults.count(KEYS)


def members(entra: EntraEmulator, **changes: Any) -> dict[str, Any]:
    """Return the first key as Entra publishes it, with changes; None leaves a member out."""
    jwk = entra.key_set(None)["keys"][0] | changes
    return {name: value for name, value in jwk.items() if value is not None}


def key_document(*keys: dict[str, Any]) -> str:
    """Return a key document."""
    return json.dumps({"keys": keys})


def metadata(entra: EntraEmulator, **changes: Any) -> str:
    """Return a metadata document, with changes."""
    document = {
        "issuer": f"{entra.url}/{{tenantid}}/v2.0",
        "jwks_uri": f"{entra.url}/organizations/discovery/v2.0/keys",
        "cloud_instance_name": CLOUD,
    }
    return json.dumps(document | changes)


def redirect(entra: EntraEmulator) -> dict[str, Any]:
    """Return a redirect to the very document that was asked for."""
    location = f"{entra.url}/common/discovery/v2.0/keys"
    return {"status": 302, "body": "", "headers": {"Location": location}}


Fault = tuple[str, dict[str, Any]]
FAULTS: list[tuple[str, Callable[[EntraEmulator], Fault]]] = [
    ("status 500", lambda _: (KEYS, {"status": 500})),
    ("status 404", lambda _: (METADATA, {"status": 404})),
    ("reset", lambda _: (KEYS, {"reset": True})),
    ("truncated", lambda _: (KEYS, {"truncate": 100})),
    ("redirect", lambda entra: (KEYS, redirect(entra))),
    ("HTML", lambda _: (KEYS, {"body": "<html>", "content_type": "text/html"})),
    ("nothing", lambda _: (KEYS, {"body": ""})),
    ("list", lambda _: (KEYS, {"body": "[]"})),
    ("null", lambda _: (METADATA, {"body": "null"})),
    ("empty object", lambda _: (KEYS, {"body": "{}"})),
    ("empty metadata", lambda _: (METADATA, {"body": "{}"})),
    ("no keys", lambda _: (KEYS, {"body": key_document()})),
    ("keys is an object", lambda _: (KEYS, {"body": '{"keys": {}}'})),
    ("a key is a string", lambda _: (KEYS, {"body": '{"keys": ["a"]}'})),
    # ASCII in UTF-16, without a byte order mark.
    (
        "UTF-16",
        lambda entra: (KEYS, {"body": "\0".join([*key_document(members(entra)), ""])}),
    ),
    (
        "byte order mark",
        lambda entra: (KEYS, {"body": f"\ufeff{key_document(members(entra))}"}),
    ),
    ("deep", lambda _: (KEYS, {"body": '{"keys": ' + "[" * 100_000 + "]" * 100_000 + "}"})),
    (
        "name twice",
        lambda entra: (
            KEYS,
            {"body": key_document(members(entra)).replace("{", '{"keys": [], ', 1)},
        ),
    ),
    (
        "300 KiB",
        lambda entra: (KEYS, {"body": key_document(members(entra, x="x" * 300 * 1024))}),
    ),
    (
        "101 keys",
        lambda entra: (
            KEYS,
            {"body": key_document(*(members(entra, kid=f"k{n}") for n in range(101)))},
        ),
    ),
    (
        "keys on another host",
        lambda entra: (
            METADATA,
            {"body": metadata(entra, jwks_uri=f"{entra.url}.example/discovery/v2.0/keys")},
        ),
    ),
    (
        "keys on the host as a user name",
        lambda entra: (
            METADATA,
            {"body": metadata(entra, jwks_uri=f"{entra.url}@entra.example/keys")},
        ),
    ),
    (
        "keys at a file",
        lambda entra: (METADATA, {"body": metadata(entra, jwks_uri="file:///etc/keys")}),
    ),
    ("keys at no text", lambda entra: (METADATA, {"body": metadata(entra, jwks_uri=5)})),
    (
        "metadata of another issuer",
        lambda entra: (
            METADATA,
            {"body": metadata(entra, issuer="https://entra.example/{tenantid}/v2.0")},
        ),
    ),
    (
        "metadata of one tenant",
        lambda entra: (METADATA, {"body": metadata(entra, issuer=entra.issuer(CONTOSO.tenant_id))}),
    ),
    (
        "metadata without issuer",
        lambda entra: (METADATA, {"body": metadata(entra, issuer=None)}),
    ),
    (
        "key id twice",
        lambda entra: (KEYS, {"body": key_document(members(entra), members(entra))}),
    ),
    (
        "private key beside it",
        lambda entra: (
            KEYS,
            {"body": key_document(members(entra), members(entra, kid="b", d="AQ"))},
        ),
    ),
    (
        "symmetric key beside it",
        lambda entra: (
            KEYS,
            {"body": key_document(members(entra), {"kty": "oct", "kid": "b", "k": "AQ"})},
        ),
    ),
    (
        "other cloud",
        lambda entra: (
            KEYS,
            {"body": key_document(members(entra, cloud_instance_name="microsoftonline.us"))},
        ),
    ),
    ("without issuer", lambda entra: (KEYS, {"body": key_document(members(entra, issuer=None))})),
]


@pytest.mark.parametrize("fault", [fault for _, fault in FAULTS], ids=[name for name, _ in FAULTS])
class TestBadDocuments:
    """Whatever Entra's host answers, the result is 503, and good keys stay."""

    async def test_cold(
        self,
        entra: EntraEmulator,
        keys: SigningKeys,
        known: str,
        fault: Callable[[EntraEmulator], Fault],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Without keys it is 503, one line is logged, and the next request is served."""
        operation, how = fault(entra)
        # aiohttp itself retries once if the connection breaks.
        entra.faults.fail_next(operation, times=2 if "reset" in how else 1, **how)

        with pytest.raises(KeysUnavailableError):
            await keys.get(known)

        failed = [line for line in caplog.messages if "signing_keys_not_refreshed" in line]
        assert 1 == len(failed)
        assert "example" not in failed[0]
        await keys.get(known)

    async def test_warm(
        self,
        entra: EntraEmulator,
        keys: SigningKeys,
        known: str,
        fault: Callable[[EntraEmulator], Fault],
    ) -> None:
        """With keys, an id that is not among them gets 503, and the others are served."""
        await keys.get(known)
        operation, how = fault(entra)
        entra.faults.fail_next(operation, times=2 if "reset" in how else 1, **how)

        with pytest.raises(KeysUnavailableError):
            await keys.get("unknown")

        await keys.get(known)
        await keys.get(entra.keys[1].kid)


class TestBadHosts:
    """Faults that are not those of a document."""

    async def test_nobody_there(self, key_store: Callable[..., SigningKeys]) -> None:
        """A refused connection is 503."""
        with pytest.raises(KeysUnavailableError):
            await key_store("http://127.0.0.1:1").get("any")

    async def test_drip(self, entra: EntraEmulator, keys: SigningKeys, known: str) -> None:
        """An answer that comes byte by byte is given up after three seconds."""
        entra.faults.fail_next(METADATA, drip=0.02)
        with pytest.raises(KeysUnavailableError):
            await keys.get(known)
        await asyncio.sleep(1.2)

        async with asyncio.timeout(1):
            await keys.get(known)
        assert 2 == entra.faults.count(METADATA)

    async def test_compressed(
        self, entra: EntraEmulator, key_store: Callable[..., SigningKeys]
    ) -> None:
        """We do not ask for compression, and do not unpack what comes compressed all the same."""

        async def answer(request: web.Request) -> web.Response:
            assert "identity" == request.headers["Accept-Encoding"]
            body = gzip.compress(metadata(entra).encode())
            return web.Response(body=body, headers={"Content-Encoding": "gzip"})

        app = web.Application()
        app.router.add_get("/{path:.*}", answer)
        async with serve(app) as url:
            with pytest.raises(KeysUnavailableError):
                await key_store(url).get("any")

    async def test_endless(self, key_store: Callable[..., SigningKeys]) -> None:
        """An answer without end is cut at 256 KiB."""
        sent = 0

        async def answer(request: web.Request) -> web.StreamResponse:
            nonlocal sent
            response = web.StreamResponse()
            await response.prepare(request)
            while True:
                await response.write(b"{" * 65_536)
                sent += 65_536

        app = web.Application()
        app.router.add_get("/{path:.*}", answer)
        async with serve(app) as url:
            with pytest.raises(KeysUnavailableError):
                await key_store(url).get("any")
        # This includes what the sockets buffer.
        assert sent < 16 * 1024 * 1024

    async def test_keys_elsewhere(
        self, entra: EntraEmulator, keys: SigningKeys, known: str, entra_keys: list[EntraKey]
    ) -> None:
        """Metadata that point to keys on another host are refused, and that host is not asked."""
        other = EntraEmulator(keys=entra_keys)
        async with serve(other.application()) as url:
            other.url = entra.url
            location = f"{url}/organizations/discovery/v2.0/keys"
            entra.faults.fail_next(METADATA, body=metadata(entra, jwks_uri=location))
            with pytest.raises(KeysUnavailableError):
                await keys.get(known)
        assert (0, 0) == fetches(other)

    async def test_untrusted_certificate(
        self, key_store: Callable[..., SigningKeys], entra_keys: list[EntraKey], tmp_path: Path
    ) -> None:
        """A host that cannot show a certificate we trust is not Entra."""
        emulator = EntraEmulator(keys=entra_keys)
        tls = Certificates(tmp_path).server_context()
        async with serve(emulator.application(), tls=tls) as url:
            emulator.url = url
            with pytest.raises(KeysUnavailableError):
                await key_store(url).get(entra_keys[0].kid)
        assert (0, 0) == fetches(emulator)

    async def test_recovers_by_itself(
        self,
        entra: EntraEmulator,
        keys: SigningKeys,
        known: str,
    ) -> None:
        """After a failure the background tries again within five seconds, without a request."""
        entra.faults.fail_next(METADATA, status=503)
        with pytest.raises(KeysUnavailableError):
            await keys.get(known)
        await until(lambda: entra.faults.count(KEYS) == 1, seconds=5.5)

        await keys.get(known)


class TestLastKnownGood:
    """Entra may be away for a day."""

    async def test_a_day(
        self, entra: EntraEmulator, keys: SigningKeys, known: str, clock: Clock
    ) -> None:
        """Keys serve for 24 hours without Entra, and not a second longer; then they come back."""
        await keys.get(known)
        entra.faults.fail_next(METADATA, status=503)
        clock.advance(seconds=DAY)
        await keys.get(known)

        clock.advance(seconds=1)
        with pytest.raises(KeysUnavailableError):
            await keys.get(known)
        await keys.get(known)

    async def test_each_request_logs_the_outage(
        self, entra: EntraEmulator, keys: SigningKeys, known: str, clock: Clock
    ) -> None:
        """If the keys are not refreshed, the requests' audit lines say how old they are."""
        await keys.get(known)
        entra.faults.fail_next(status=503, times=99)
        told = []
        for hours in (1.9, 0.2, 21.0, 1.0):
            clock.advance(hours=hours)
            with audit.decision() as noted, suppress(KeysUnavailableError):
                await keys.get(known)
            told.append(noted.get("keys_age_hours"))

        assert [None, 2.1, 23.1, 24.1] == told

    async def test_without_keys_there_is_no_age(
        self, entra: EntraEmulator, keys: SigningKeys, known: str
    ) -> None:
        """An instance that never had keys logs how long it waited for them, and no age."""
        entra.faults.fail_next(status=503, times=99)
        with audit.decision() as noted, suppress(KeysUnavailableError):
            await keys.get(known)

        assert ["keys_ms"] == list(noted)

    async def test_background_lines_are_printed(
        self,
        entra: EntraEmulator,
        key_store: Callable[..., SigningKeys],
        known: str,
        caplog: pytest.LogCaptureFixture,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """The refresher outlives the request that began it, and the host drops late records."""
        caplog.set_level(logging.INFO)
        keys = key_store(entra.url, refresh_interval=0.05)
        with audit.decision():
            await keys.get(known)
        logged = [json.loads(line)["event"] for line in caplog.messages]
        entra.faults.fail_next("jwks", status=503)
        printed: list[str] = []

        def told() -> bool:
            printed.extend(capsys.readouterr().out.splitlines())
            return any("signing_keys_not_refreshed" in line for line in printed)

        await until(told)
        keys.close()

        assert ["signing_keys_refreshed"] == logged
        assert {"reason": "status 503", "age_hours": 0.0}.items() <= json.loads(printed[-1]).items()
        assert len(logged) == len(caplog.messages)

    async def test_all_keys_replaced(
        self,
        entra: EntraEmulator,
        keys: SigningKeys,
        known: str,
        new_key: EntraKey,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A set that shares no key with the old one is taken, and said to be all new."""
        caplog.set_level(logging.INFO)
        await keys.get(known)
        await keys.get(entra.roll_keys(keep=0, new=new_key))

        news = [json.loads(line) for line in caplog.messages if "signing_keys_refreshed" in line]
        assert [False, True] == [line["all_new"] for line in news]


def private(bits: int, exponent: int = 65537) -> rsa.RSAPrivateKey:
    """Return an RSA key of some size."""
    return rsa.generate_private_key(public_exponent=exponent, key_size=bits)


class TestUsableKeys:
    """Of a good set, the keys that may verify access tokens."""

    @pytest.fixture
    def good(self, entra_keys: list[EntraKey]) -> dict[str, Any]:
        return entra_keys[0].jwk(issuer="https://entra.example/{tenantid}/v2.0", alg="RS256")

    @pytest.mark.parametrize(
        "changes",
        [
            pytest.param({"kty": "EC"}, id="kty EC"),
            pytest.param({"use": "enc"}, id="for encryption"),
            pytest.param({"alg": "RS512"}, id="for another algorithm"),
            pytest.param({"key_ops": ["sign"]}, id="not for verifying"),
            pytest.param({"key_ops": 5}, id="key_ops not a list"),
            pytest.param({"kid": "two words"}, id="no key id"),
            pytest.param({"kid": 5}, id="key id not a string"),
            pytest.param({"kid": ["a"]}, id="key id a list"),
            pytest.param({"kid": "k" * 129}, id="key id too long"),
            pytest.param({"issuer": None}, id="issuer null"),
            pytest.param({"issuer": 5}, id="issuer not a string"),
            pytest.param(
                {"cloud_instance_name": "microsoftonline.us"}, id="issuer of another cloud"
            ),
            pytest.param({"n": "%"}, id="modulus not base64"),
            pytest.param({"n": ""}, id="no modulus"),
            pytest.param({"n": 5}, id="modulus not a string"),
            pytest.param({"e": "AQ"}, id="exponent 1"),
        ],
    )
    def test_left_out(
        self, good: dict[str, Any], changes: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        """A key that cannot be used is left out, and said so; those beside it stay."""
        beside = good | {"kid": "beside"}

        keys = signing_keys_from(
            {"keys": [good | changes, beside]}, cloud=CLOUD, default_issuer=None
        )

        assert ["beside"] == list(keys)
        assert "signing_key_rejected" in caplog.messages[0]

    @pytest.mark.parametrize(
        "key",
        [
            pytest.param(lambda: private(1024), id="1024 bits"),
            pytest.param(lambda: private(2048, exponent=3), id="exponent 3"),
        ],
    )
    def test_weak_key(self, good: dict[str, Any], key: Callable[[], rsa.RSAPrivateKey]) -> None:
        """A key that is weak is left out."""
        weak = EntraKey(key(), "weak", {}).jwk(issuer="https://entra.example/{tenantid}/v2.0")

        keys = signing_keys_from({"keys": [weak, good]}, cloud=CLOUD, default_issuer=None)

        assert [good["kid"]] == list(keys)

    def test_elliptic_curve(self, good: dict[str, Any]) -> None:
        """A set may hold an EC key; it is not used."""
        numbers = ec.generate_private_key(ec.SECP256R1()).public_key().public_numbers()
        curve = {"kty": "EC", "crv": "P-256", "kid": "ec", "x": numbers.x, "y": numbers.y}

        keys = signing_keys_from({"keys": [curve, good]}, cloud=CLOUD, default_issuer=None)

        assert [good["kid"]] == list(keys)

    @pytest.mark.parametrize("name", sorted(signing_keys._PRIVATE_MEMBERS))  # noqa: SLF001 - each one
    def test_private_key(self, good: dict[str, Any], name: str) -> None:
        """A set with a private key is refused as a whole."""
        leaked = good | {"kid": "leaked", name: "AQ"}

        with pytest.raises(ValueError, match="public keys"):
            signing_keys_from({"keys": [good, leaked]}, cloud=CLOUD, default_issuer=None)

    def test_issuer_of_a_tenant(self, good: dict[str, Any]) -> None:
        """In a tenant's own document, a key without an issuer signs for the tenant."""
        del good["issuer"]

        keys = signing_keys_from({"keys": [good]}, cloud=CLOUD, default_issuer="https://a/b/v2.0")

        assert "https://a/b/v2.0" == keys[good["kid"]].issuer
