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

from local.entra.directory import ADA, CONTOSO
from local.entra.emulator import EntraEmulator
from local.entra.tokens import CLOUD
from local.entra.tokens import SigningKey as EntraKey
from local.serving.application import serve
from local.serving.certificates import Certificates
from shared import audit
from shared.entra.signing_keys import SigningKeys
from shared.errors import InvalidTokenError, KeysUnavailableError
from shared.identifiers import Person
from tests.emulated import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.emulated import Clock

METADATA, KEYS = "openid_configuration", "jwks"
# Payloads of tokens: of no time, of a time before every set, and of one after.
ANY, LONG_AGO, RECENT = b"{}", b'{"iat":1}', b'{"iat":99999999999}'
DAY = 24 * 3600


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


async def refreshed(entra: EntraEmulator) -> None:
    """Wait until a fetch that began after now has ended, since the next has begun."""
    before = entra.faults.count(KEYS)
    await until(lambda: entra.faults.count(KEYS) >= before + 2)


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

        found = await asyncio.gather(*(keys.get(known, ANY) for _ in range(100)))

        assert (1, 1) == fetches(entra)
        numbers = entra.keys[0].private_key.public_key().public_numbers()
        assert {numbers} == {key.public_key.public_numbers() for key in found}
        assert {f"{entra.url}/{{tenantid}}/v2.0"} == {key.issuer for key in found}

    async def test_known_key_never_waits(
        self, entra: EntraEmulator, keys: SigningKeys, known: str
    ) -> None:
        """A known key is returned at once, even while the set is being fetched."""
        await keys.get(known, ANY)
        entra.faults.fail_next(KEYS, delay=1)
        fetching = asyncio.create_task(keys.get("another", RECENT))
        await until(lambda: entra.faults.count(KEYS) == 2)

        async with asyncio.timeout(0.05):
            await keys.get(known, ANY)

        assert not fetching.done()
        fetching.cancel()

    async def test_new_key(
        self, entra: EntraEmulator, keys: SigningKeys, known: str, new_key: EntraKey
    ) -> None:
        """A hundred callers with tokens of a new key share one fetch, and all are served."""
        await keys.get(known, ANY)
        new = entra.roll_keys(new=new_key)

        await asyncio.gather(*(keys.get(new, RECENT) for _ in range(100)))

        assert (2, 2) == fetches(entra)

    async def test_first_caller_leaves(
        self, entra: EntraEmulator, keys: SigningKeys, known: str
    ) -> None:
        """The fetch goes on for the others if the caller that started it is cancelled."""
        entra.faults.fail_next(KEYS, delay=0.2)
        first, *others = [asyncio.create_task(keys.get(known, ANY)) for _ in range(5)]
        await until(lambda: entra.faults.count(KEYS) == 1)
        first.cancel()

        await asyncio.gather(*others)

        assert first.cancelled()
        assert (1, 1) == fetches(entra)

    async def test_waits_at_most_two_seconds(
        self, entra: EntraEmulator, keys: SigningKeys, known: str
    ) -> None:
        """A caller gets 503 while a slow fetch goes on; its result serves the next caller."""
        entra.faults.fail_next(KEYS, delay=2.7)
        async with asyncio.timeout(2.65):
            with pytest.raises(KeysUnavailableError):
                await keys.get(known, ANY)
        await asyncio.sleep(0.9)

        await keys.get(known, ANY)

        assert (1, 1) == fetches(entra)

    async def test_cannot_tell_while_fetching(
        self, entra: EntraEmulator, keys: SigningKeys, known: str, new_key: EntraKey
    ) -> None:
        """A new key is not refused as unknown as long as the answer is outstanding."""
        await keys.get(known, ANY)
        new = entra.roll_keys(new=new_key)
        entra.faults.fail_next(KEYS, delay=2.3)

        with pytest.raises(KeysUnavailableError):
            await keys.get(new, RECENT)

    @pytest.mark.parametrize(
        ("after", "error"), [(60, InvalidTokenError), (59, KeysUnavailableError)]
    )
    async def test_withdrawn_key(
        self,
        entra: EntraEmulator,
        keys: SigningKeys,
        known: str,
        new_key: EntraKey,
        clock: Clock,
        after: int,
        error: type[Exception],
    ) -> None:
        """A key that Entra withdraws is gone with the next refresh, for tokens of any age.

        If no new key comes with it, only a set from a minute later makes recent tokens forgeries.
        """
        new = entra.roll_keys(keep=1, new=new_key)
        await keys.get(new, ANY)
        entra.withdraw_key(known)
        clock.advance(seconds=after)
        with suppress(InvalidTokenError, KeysUnavailableError):
            await keys.get("made-up", RECENT)

        with pytest.raises(InvalidTokenError):
            await keys.get(known, LONG_AGO)
        for payload in (RECENT, ANY):
            with pytest.raises(error):
                await keys.get(known, payload)

    async def test_replaced_key(
        self, entra: EntraEmulator, keys: SigningKeys, known: str, new_key: EntraKey
    ) -> None:
        """A set that brings a new key is the newest, so what it lacks is gone at once."""
        await keys.get(known, ANY)
        new = entra.roll_keys(keep=0, new=new_key)
        await keys.get(new, RECENT)

        for payload in (LONG_AGO, RECENT, ANY):
            with pytest.raises(InvalidTokenError):
                await keys.get(known, payload)

    async def test_withdrawn_key_comes_back(
        self,
        entra: EntraEmulator,
        key_store: Callable[..., SigningKeys],
        known: str,
        new_key: EntraKey,
    ) -> None:
        """If one of Entra's hosts did not have a key yet, what it signs is good again soon."""
        keys = key_store(entra.url, refresh_interval=0.05)
        await keys.get(known, ANY)
        everything = list(entra.keys)
        entra.roll_keys(keep=0, new=new_key)
        await refreshed(entra)
        with pytest.raises(InvalidTokenError):
            await keys.get(known, LONG_AGO)
        entra.keys[:] = everything
        await refreshed(entra)

        assert await keys.get(known, RECENT)

    async def test_refreshes_in_the_background(
        self,
        entra: EntraEmulator,
        key_store: Callable[..., SigningKeys],
        known: str,
        new_key: EntraKey,
    ) -> None:
        """Without a request, withdrawn keys go and new ones come."""
        keys = key_store(entra.url, refresh_interval=0.05)
        await keys.get(known, ANY)
        new = entra.roll_keys(keep=0, new=new_key)
        await refreshed(entra)

        async with asyncio.timeout(0.05):
            await keys.get(new, RECENT)
        with pytest.raises(InvalidTokenError):
            await keys.get(known, LONG_AGO)

    async def test_keys_of_one_tenant(
        self, entra: EntraEmulator, key_store: Callable[..., SigningKeys], known: str
    ) -> None:
        """The keys of a tenant's own document sign for that tenant."""
        keys = key_store(entra.url, keys_of=CONTOSO.tenant_id)

        assert entra.issuer(CONTOSO.tenant_id) == (await keys.get(known, ANY)).issuer

    async def test_load(self, entra: EntraEmulator, keys: SigningKeys) -> None:
        """Readiness fetches once, and says when it could not."""
        entra.faults.fail_next(KEYS, status=503)
        with pytest.raises(KeysUnavailableError):
            await keys.load()

        await keys.load()
        await keys.load()

        assert 2 == entra.faults.count(KEYS)


class TestUnknownIds:
    """What a key id that is not in the set means. Floods of them are in virtual time."""

    async def test_old_token(self, entra: EntraEmulator, keys: SigningKeys, known: str) -> None:
        """A token from before the set is forged: it is refused, and Entra is not asked."""
        await keys.get(known, ANY)
        for position in range(200):
            with pytest.raises(InvalidTokenError):
                await keys.get(f"unknown-{position}", LONG_AGO)

        assert (1, 1) == fetches(entra)

    async def test_old_tokens_at_a_cold_start(
        self, entra: EntraEmulator, keys: SigningKeys
    ) -> None:
        """The same, all together at a cold start."""
        outcomes = await asyncio.gather(
            *(keys.get(f"unknown-{position}", LONG_AGO) for position in range(200)),
            return_exceptions=True,
        )

        assert {InvalidTokenError} == {type(outcome) for outcome in outcomes}
        assert (1, 1) == fetches(entra)

    async def test_recent_token(self, entra: EntraEmulator, keys: SigningKeys, known: str) -> None:
        """The key of a recent token may be new, so it is not refused, and Entra is asked twice."""
        for position in range(200):
            with pytest.raises(KeysUnavailableError):
                await keys.get(f"unknown-{position}", RECENT)

        assert (3, 3) == fetches(entra)
        await keys.get(known, ANY)

    async def test_entra_is_down(self, entra: EntraEmulator, keys: SigningKeys) -> None:
        """All get 503, and failed fetches count against the budget."""
        entra.faults.fail_next(METADATA, status=503, times=1000)
        for position in range(200):
            with pytest.raises(KeysUnavailableError):
                await keys.get(f"unknown-{position}", LONG_AGO)

        assert 3 == entra.faults.count(METADATA)

    async def test_rollover_during_a_flood(
        self, entra: EntraEmulator, keys: SigningKeys, known: str, new_key: EntraKey
    ) -> None:
        """Strangers with the new key wait, nobody is refused; who was served before, is."""
        await keys.get(known, ANY)
        keys.served(Person(CONTOSO.tenant_id, ADA.object_id))
        for position in range(50):
            with pytest.raises(KeysUnavailableError):
                await keys.get(f"unknown-{position}", RECENT)
        new = entra.roll_keys(new=new_key)
        of_ada = f'{{"tid":"{CONTOSO.tenant_id}","oid":"{ADA.object_id}"}}'.encode()

        with pytest.raises(KeysUnavailableError):
            await keys.get(new, RECENT)
        await keys.get(new, of_ada)
        await keys.get(new, RECENT)

        assert (4, 4) == fetches(entra)

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
            with pytest.raises(KeysUnavailableError):
                await keys.get(f"unknown-{position}", RECENT)
        new = entra.roll_keys(new=new_key)
        await refreshed(entra)

        await keys.get(new, RECENT)
        await keys.get(known, ANY)


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
        entra.faults.fail_next(operation, **how)

        with pytest.raises(KeysUnavailableError):
            await keys.get(known, ANY)

        failed = [line for line in caplog.messages if "signing_keys_not_refreshed" in line]
        assert 1 == len(failed)
        assert "example" not in failed[0]
        await keys.get(known, ANY)

    async def test_warm(
        self,
        entra: EntraEmulator,
        keys: SigningKeys,
        known: str,
        fault: Callable[[EntraEmulator], Fault],
    ) -> None:
        """With keys, an id that is not among them gets 503, and the others are served."""
        await keys.get(known, ANY)
        operation, how = fault(entra)
        entra.faults.fail_next(operation, **how)

        with pytest.raises(KeysUnavailableError):
            await keys.get("unknown", RECENT)

        await keys.get(known, ANY)
        await keys.get(entra.keys[1].kid, RECENT)


class TestBadHosts:
    """Faults that are not those of a document."""

    async def test_nobody_there(self, key_store: Callable[..., SigningKeys]) -> None:
        """A refused connection is 503."""
        with pytest.raises(KeysUnavailableError):
            await key_store("http://127.0.0.1:1").get("any", ANY)

    async def test_drip(self, entra: EntraEmulator, keys: SigningKeys, known: str) -> None:
        """An answer that comes byte by byte is given up after three seconds."""
        entra.faults.fail_next(METADATA, drip=0.02)
        with pytest.raises(KeysUnavailableError):
            await keys.get(known, ANY)
        await asyncio.sleep(2)

        async with asyncio.timeout(1):
            await keys.get(known, ANY)
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
                await key_store(url).get("any", ANY)

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
                await key_store(url).get("any", ANY)
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
                await keys.get(known, ANY)
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
                await key_store(url).get(entra_keys[0].kid, ANY)
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
            await keys.get(known, ANY)
        await until(lambda: entra.faults.count(KEYS) == 1, seconds=5.5)

        await keys.get(known, ANY)


class TestLastKnownGood:
    """Entra may be away for a day."""

    async def test_a_day(
        self, entra: EntraEmulator, keys: SigningKeys, known: str, clock: Clock
    ) -> None:
        """Keys serve for 24 hours without Entra, and not a second longer; then they come back."""
        await keys.get(known, ANY)
        entra.faults.fail_next(METADATA, status=503)
        clock.advance(seconds=DAY)
        await keys.get(known, ANY)

        clock.advance(seconds=1)
        with pytest.raises(KeysUnavailableError):
            await keys.get(known, ANY)
        await keys.get(known, ANY)

    async def test_each_request_logs_the_outage(
        self, entra: EntraEmulator, keys: SigningKeys, known: str, clock: Clock
    ) -> None:
        """If the keys are not refreshed, the requests' audit lines say how old they are."""
        await keys.get(known, ANY)
        entra.faults.fail_next(status=503, times=99)
        told = []
        for hours in (1.9, 0.2, 21.0, 1.0):
            clock.advance(hours=hours)
            with audit.decision() as noted, suppress(KeysUnavailableError):
                await keys.get(known, ANY)
            told.append(noted.get("keys_age_hours"))

        assert [None, 2.1, 23.1, 24.1] == told

    async def test_without_keys_there_is_no_age(
        self, entra: EntraEmulator, keys: SigningKeys, known: str
    ) -> None:
        """An instance that never had keys logs how long it waited for them, and no age."""
        entra.faults.fail_next(status=503, times=99)
        with audit.decision() as noted, suppress(KeysUnavailableError):
            await keys.get(known, ANY)

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
            await keys.get(known, ANY)
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
        await keys.get(known, ANY)
        await keys.get(entra.roll_keys(keep=0, new=new_key), RECENT)

        news = [json.loads(line) for line in caplog.messages if "signing_keys_refreshed" in line]
        assert [False, True] == [line["all_new"] for line in news]
