"""The key store over hours and days, in virtual time. How it fares under attack: tests/pressure."""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from shared.entra.key_fetches import BURST, REFILL, RESERVE, RESERVE_REFILL
from shared.entra.key_sets import MAX_AGE
from shared.entra.signing_keys import MAX_SERVED
from shared.errors import StorageUnavailableError
from shared.identifiers import Person
from tests.simulation.entra import EPOCH, TENANT, ask, in_virtual_time, public_key, token

if TYPE_CHECKING:
    from collections.abc import Callable

    from shared.entra.signing_keys import SigningKeys
    from tests.simulation.entra import Entra

HOUR, DAY = 3600, 24 * 3600
PERSON = Person(TENANT, "0b5e55ed-0000-4000-8000-000000000001")
EPS = 0.5  # What answers take.


def after(entra: Entra, at: float) -> list[float]:
    """Return when fetches began, in seconds from a time on."""
    return [asked - at for asked in entra.asked_at if asked >= at]


class TestInTheBackground:
    """What happens without a request."""

    def test_every_hour(self) -> None:
        """The set is refreshed about once an hour, at a moment that differs."""

        async def month(keys: SigningKeys, entra: Entra) -> list[float]:
            await keys.load()
            await asyncio.sleep(30 * DAY)
            return entra.asked_at

        pauses = [later - earlier for earlier, later in pairwise(in_virtual_time(month))]

        assert 0.89 * HOUR < min(pauses) < 0.95 * HOUR
        assert 1.05 * HOUR < max(pauses) < 1.11 * HOUR

    @pytest.mark.parametrize("hangs", [False, True])
    def test_backs_off(self, hangs: bool) -> None:
        """While Entra is out of reach, the pauses grow from 5 seconds to 5 minutes."""

        async def outage(keys: SigningKeys, entra: Entra) -> tuple[list[float], float]:
            await keys.load()
            entra.away_until, entra.hangs = 6 * HOUR, hangs
            await asyncio.sleep(7 * HOUR)
            return entra.asked_at[1:], entra.away_until

        asked, back = in_virtual_time(outage)
        failed = [at for at in asked if at < back]
        pauses = [later - earlier for earlier, later in pairwise(failed)]

        for pause, longest in zip(pauses, (5, 10, 20, 40, 80, 160, *[300] * 99), strict=False):
            assert 0.8 * longest <= pause <= longest + EPS
        assert 50 < len(failed) < 100
        served_again = asked[len(failed)] - back
        assert served_again <= 300
        assert 1 >= len(asked) - len(failed) - 1  # Then every hour, as before.

    def test_fetch_on_demand_during_a_pause(self) -> None:
        """A fetch on demand that fails as well does not put the next one off."""

        async def outage(keys: SigningKeys, entra: Entra) -> list[float]:
            keys.served(PERSON)
            await keys.load()
            entra.away_until = 1000
            for _ in range(30):
                await ask(keys, "new", token(entra, PERSON.object_id))
                await asyncio.sleep(1)
            return entra.asked_at[1:]

        on_demand, background = (
            [at for at in in_virtual_time(outage) if (at < 3) is is_early]
            for is_early in (True, False)
        )

        assert BURST + RESERVE == len(on_demand)
        assert [True, True] == [4 <= background[0] <= 5.2, 12 <= background[1] <= 15.2]

    @pytest.mark.parametrize(
        ("retry_after", "wait"),
        [
            ("120", (120, 121)),
            ("86400", (300, 301)),
            ("0", (4, 5.2)),
            # In these forms it is not heard, so the next caller may cause a fetch.
            ("soon", (1, 1.1)),
            ("Fri, 15 Jan 2027 08:02:00 GMT", (1, 1.1)),
        ],
    )
    def test_retry_after(self, retry_after: str, wait: tuple[float, float]) -> None:
        """Entra is left alone for as long as it asks, within reason, whoever comes meanwhile."""

        async def busy(keys: SigningKeys, entra: Entra) -> list[float]:
            keys.served(PERSON)
            entra.busy_until, entra.retry_after = 1, retry_after
            for _ in range(310):
                await ask(keys, "old", token(entra, PERSON.object_id))
                await asyncio.sleep(1)
            return entra.asked_at

        cold, again, *_ = in_virtual_time(busy)

        assert 0 == cold
        assert wait[0] <= again <= wait[1]


class TestAge:
    """How old keys may be."""

    def test_a_day(self) -> None:
        """Without Entra, keys serve for 24 hours, and not a second longer; then they come back."""

        async def outage(keys: SigningKeys, entra: Entra) -> list[int]:
            await keys.load()
            entra.away_until = MAX_AGE + 1000
            found = []
            for at in (MAX_AGE - 1, MAX_AGE + 1, MAX_AGE + 1000 + 300 + 10):
                await asyncio.sleep(at - asyncio.get_running_loop().time())
                found.append(await ask(keys, "old", b"{}"))
            return found

        assert [200, 503, 200] == in_virtual_time(outage)

    def test_withdrawn(self) -> None:
        """A key that Entra withdraws dies with the next refresh, and its tokens are refused."""

        async def withdraw(keys: SigningKeys, entra: Entra) -> list[int]:
            await keys.load()
            old = token(entra)
            entra.key_ids = ["new"]
            before = await ask(keys, "old", old)
            await asyncio.sleep(1.2 * HOUR)
            return [before, await ask(keys, "old", old), await ask(keys, "old", token(entra))]

        assert [200, 401, 401] == in_virtual_time(withdraw)

    def test_hosts_disagree(self) -> None:
        """A key that only some of Entra's hosts have yet is not taken for a withdrawn one."""

        async def roll_over(keys: SigningKeys, entra: Entra) -> list[int]:
            await keys.load()
            keys.served(PERSON)
            await asyncio.sleep(1000)
            # Somebody who makes up key ids causes each fetch that may be made.
            for seen in (["old", "new"], ["old"], ["old"]):
                entra.key_ids = seen
                await ask(keys, "made-up", token(entra, PERSON.object_id))
                await asyncio.sleep(15)
            entra.key_ids = ["old", "new"]
            found = []
            for _ in range(2):
                found.append(await ask(keys, "new", token(entra, PERSON.object_id)))
                await asyncio.sleep(REFILL)
            return found

        assert [503, 200] == in_virtual_time(roll_over)


class TestUnknownKeys:
    """What a key id means that is not in the set."""

    @pytest.mark.parametrize(
        ("before", "status"),
        [(361, 401), (359, 503), (0, 503), (-HOUR, 503)],
    )
    def test_time_of_the_token(self, before: int, status: int) -> None:
        """It is refused only if the set is from so long after the token that the key was in it."""

        async def come(keys: SigningKeys, entra: Entra) -> int:
            await keys.load()
            forged = token(entra, issued=-before)
            await asyncio.sleep(1000)  # That time passes proves nothing.
            entra.away_until = 2000
            return await ask(keys, "forged", forged)

        assert status == in_virtual_time(come)

    def test_refused_by_the_fetch_that_it_causes(self) -> None:
        """A set that comes after the token's time, and lacks its key, proves it forged."""

        async def come(keys: SigningKeys, entra: Entra) -> int:
            await keys.load()
            forged = token(entra)
            await asyncio.sleep(361)
            return await ask(keys, "forged", forged)

        assert 401 == in_virtual_time(come)

    def test_entra_says_no_date(self) -> None:
        """If it is not known when Entra answered, nothing is refused."""

        async def come(keys: SigningKeys, entra: Entra) -> int:
            entra.says_date = False
            await keys.load()
            return await ask(keys, "forged", token(entra, issued=-DAY))

        assert 503 == in_virtual_time(come)

    @pytest.mark.parametrize("every", [1, 10, 61])
    def test_hours_of_a_flood(self, every: float) -> None:
        """Entra is asked three times at once, and then at most six times in five minutes."""

        async def flood(keys: SigningKeys, entra: Entra) -> list[float]:
            keys.served(PERSON)
            await keys.load()
            for position in range(int(3 * HOUR / every)):
                await ask(keys, f"k{position}", token(entra, PERSON.object_id))
                await asyncio.sleep(every)
            return entra.asked_at[1:]

        asked = in_virtual_time(flood)

        refills = 3 * HOUR / REFILL + 3 * HOUR / RESERVE_REFILL
        assert len(asked) <= BURST + RESERVE + refills + 3
        assert BURST + RESERVE >= sum(at < REFILL for at in asked)

    def test_reserve(self) -> None:
        """Strangers leave one fetch for those who were served, and there is a new one later."""

        async def come(keys: SigningKeys, entra: Entra) -> list[int]:
            await keys.load()  # This fetch is free.
            keys.served(PERSON)
            fetches = []
            for who, wait in (
                *((None, 0) for _ in range(5)),
                *((PERSON.object_id, 0) for _ in range(3)),
                (None, REFILL + 1),
                (PERSON.object_id, 0),
                *((None, RESERVE_REFILL) for _ in range(2)),
                *((None, 0) for _ in range(2)),
                (PERSON.object_id, 0),
            ):
                await asyncio.sleep(wait)
                before = len(entra.asked_at)
                await ask(keys, "unknown", token(entra, who))
                fetches.append(len(entra.asked_at) - before)
            return fetches

        assert [1, 1, 0, 0, 0, 1, 0, 0, 1, 0, 1, 1, 1, 0, 1] == in_virtual_time(come)

    def test_after_a_burst(self) -> None:
        """When somebody has spent everything and left, strangers wait no longer than a minute."""

        async def come(keys: SigningKeys, entra: Entra) -> list[int]:
            await keys.load()
            keys.served(PERSON)
            for _ in range(BURST + RESERVE + 1):
                await ask(keys, "unknown", token(entra, PERSON.object_id))
            entra.key_ids = ["old", "new"]
            found = []
            for _ in range(REFILL + 2):
                found.append(await ask(keys, "new", token(entra)))
                await asyncio.sleep(1)
            return found

        found = in_virtual_time(come)
        assert {503} == set(found[: REFILL - 2])
        assert 200 == found[-1]

    def test_remembers_so_many_people(self) -> None:
        """The one who was served the longest ago is forgotten first."""

        async def come(keys: SigningKeys, entra: Entra) -> list[int]:
            await keys.load()
            keys.served(PERSON)
            for number in range(MAX_SERVED - 1):
                keys.served(Person(TENANT, f"{number:08d}-0000-4000-8000-000000000000"))
            keys.served(PERSON)
            keys.served(Person(TENANT, "another"))
            for _ in range(BURST + 1):
                await ask(keys, "unknown", token(entra))
            fetches = []
            for who in ("00000000-0000-4000-8000-000000000000", PERSON.object_id):
                before = len(entra.asked_at)
                await ask(keys, "unknown", token(entra, who))
                fetches.append(len(entra.asked_at) - before)
            return fetches

        assert [0, 1] == in_virtual_time(come)


class Shelf:
    """Where documents are kept, in virtual time."""

    def __init__(self) -> None:
        self.document: bytes | None = None
        self.written_at: list[float] = []
        self.read_at: list[float] = []
        self.fails = False
        self.ahead = 0  # Seconds by which this store's clock is ahead.
        self.delay = 0  # Seconds before it answers.

    async def write(self, name: str, document: bytes) -> None:
        """Keep a document."""
        assert "signing_keys_organizations" == name
        self.written_at.append(asyncio.get_running_loop().time())
        if self.fails:
            raise StorageUnavailableError("503")
        self.document = document

    async def read(self, name: str) -> tuple[bytes, datetime] | None:
        """Return the document."""
        assert "signing_keys_organizations" == name
        self.read_at.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.delay)
        if self.fails:
            raise StorageUnavailableError("503")
        if self.document is None:
            return None
        now = EPOCH + asyncio.get_running_loop().time() + self.ahead
        return self.document, datetime.fromtimestamp(now, UTC)


@pytest.fixture
def shelf() -> Shelf:
    """A shelf on which another process has kept its keys just now."""
    shelf = Shelf()

    async def earlier(keys: SigningKeys, entra: Entra) -> None:
        del entra
        await keys.load()
        await asyncio.sleep(1)

    in_virtual_time(earlier, shelf)
    assert shelf.document
    return shelf


async def come_without_entra(keys: SigningKeys, entra: Entra) -> int:
    """Return what somebody with a token of the known key is answered."""
    entra.away_until = HOUR
    return await ask(keys, "old", b"{}")


class TestKept:
    """The set that a process keeps for those that start while Entra is out of reach."""

    @pytest.mark.parametrize("hangs", [False, True])
    def test_cold_start(self, shelf: Shelf, hangs: bool, caplog: pytest.LogCaptureFixture) -> None:
        """It serves, is said to be kept, and the first set that Entra gives replaces it."""
        caplog.set_level(logging.INFO)

        async def start(keys: SigningKeys, entra: Entra) -> list[Any]:
            entra.away_until, entra.hangs = HOUR, hangs
            found: list[Any] = [await ask(keys, "old", b"{}")]
            await asyncio.sleep(5)
            found.append((await keys.get("old", b"{}")).is_kept)
            await asyncio.sleep(HOUR + 300)
            found.append((await keys.get("old", b"{}")).is_kept)
            return found

        # Who comes first waits for two seconds at most, and silence takes three to be certain.
        assert [503 if hangs else 200, True, False] == in_virtual_time(start, shelf)
        lines = [json.loads(line) for line in caplog.messages if "kept_signing_keys_used" in line]
        assert [{"event": "kept_signing_keys_used", "keys": 1, "age_hours": 0.0}] == lines
        assert 1 == len(shelf.read_at)

    def test_proves_nothing(self, shelf: Shelf) -> None:
        """No token is refused because a kept set lacks its key."""

        async def start(keys: SigningKeys, entra: Entra) -> int:
            await come_without_entra(keys, entra)
            return await ask(keys, "unknown", token(entra, issued=-DAY))

        assert 503 == in_virtual_time(start, shelf)

    def test_withdraws_nothing(self, shelf: Shelf) -> None:
        """A key that only a kept set had is not taken for one that Entra has withdrawn."""

        async def start(keys: SigningKeys, entra: Entra) -> list[int]:
            entra.away_until = 3
            found = [await ask(keys, "old", b"{}")]
            entra.key_ids = ["another"]
            await asyncio.sleep(1.2 * HOUR)
            return [*found, await ask(keys, "another", b"{}"), await ask(keys, "old", b"{}")]

        assert [200, 200, 503] == in_virtual_time(start, shelf)

    def test_a_day(self, shelf: Shelf) -> None:
        """Its age counts from when Entra published it, not from when it was found."""
        shelf.ahead = 20 * HOUR

        async def start(keys: SigningKeys, entra: Entra) -> list[int]:
            entra.away_until = 2 * DAY
            found = []
            for hours in (0, 3.9, 0.2):
                await asyncio.sleep(hours * HOUR)
                found.append(await ask(keys, "old", b"{}"))
            return found

        assert [200, 200, 503] == in_virtual_time(start, shelf)

    def test_not_read_without_need(self, shelf: Shelf) -> None:
        """Who can fetch the keys, or has some, looks at no others."""

        async def run(keys: SigningKeys, entra: Entra) -> None:
            await keys.load()
            entra.away_until = DAY
            await asyncio.sleep(DAY)

        in_virtual_time(run, shelf)

        assert [] == shelf.read_at

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            pytest.param(lambda kept: {"authority": "https://x"}, "another publisher", id="cloud"),
            pytest.param(lambda kept: {"keys_of": TENANT}, "another publisher", id="tenant"),
            pytest.param(lambda kept: {"published_on": EPOCH + 62}, "dated", id="from tomorrow"),
            pytest.param(lambda kept: {"published_on": EPOCH - DAY}, "a day", id="from yesterday"),
            pytest.param(lambda kept: {"published_on": 1.5}, "not a kept", id="date a fraction"),
            pytest.param(lambda kept: {"published_on": True}, "not a kept", id="date true"),
            pytest.param(lambda kept: {"metadata": []}, "not a kept", id="no metadata"),
            pytest.param(lambda kept: {"metadata": {}}, "another issuer", id="empty metadata"),
            pytest.param(
                lambda kept: {"metadata": kept["metadata"] | {"jwks_uri": "https://x/keys"}},
                "another host",
                id="keys elsewhere",
            ),
            pytest.param(
                lambda kept: {"metadata": kept["metadata"] | {"cloud_instance_name": "other"}},
                "no usable key",
                id="another cloud's",
            ),
            pytest.param(lambda kept: {"keys": []}, "no usable key", id="no keys"),
            pytest.param(lambda kept: {"keys": kept["keys"] * 2}, "twice", id="key id twice"),
            pytest.param(
                lambda kept: {"keys": [kept["keys"][0] | {"d": "AQ"}]}, "public", id="private key"
            ),
            pytest.param(
                lambda kept: {
                    "keys": [public_key() | {"kid": f"k{number}"} for number in range(101)]
                },
                "not a set",
                id="101 keys",
            ),
        ],
    )
    def test_refused(
        self,
        shelf: Shelf,
        change: Callable[[Any], dict[str, Any]],
        reason: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A kept set passes every check of a fetched one, and some more, or it is not used."""
        assert shelf.document
        kept = json.loads(shelf.document)
        shelf.document = json.dumps(kept | change(kept)).encode()

        assert 503 == in_virtual_time(come_without_entra, shelf)

        (line,) = [line for line in caplog.messages if "kept_signing_keys_refused" in line]
        assert reason in json.loads(line)["reason"]

    @pytest.mark.parametrize("document", [b"", b"[]", b"{", b'{"keys":[],"keys":[]}', b"\xff"])
    def test_not_a_document(self, shelf: Shelf, document: bytes) -> None:
        """Whatever else lies there is not used."""
        shelf.document = document

        assert 503 == in_virtual_time(come_without_entra, shelf)

    def test_without_the_store(self, shelf: Shelf, caplog: pytest.LogCaptureFixture) -> None:
        """If the store fails, too, it is asked again after the next attempt."""
        shelf.fails = True

        async def start(keys: SigningKeys, entra: Entra) -> list[int]:
            first = await come_without_entra(keys, entra)
            shelf.fails = False
            await asyncio.sleep(6)
            return [first, await ask(keys, "old", b"{}")]

        assert [503, 200] == in_virtual_time(start, shelf)
        assert "kept_signing_keys_refused" in caplog.text

    def test_slow_store(self, shelf: Shelf) -> None:
        """Entra is asked again even if the store takes longer than the pause."""
        shelf.delay = 8

        async def start(keys: SigningKeys, entra: Entra) -> list[float]:
            await come_without_entra(keys, entra)
            await asyncio.sleep(60)
            return entra.asked_at

        assert 4 <= len(in_virtual_time(start, shelf))

    def test_nothing_kept(self) -> None:
        """The first process of all has nothing to fall back on."""
        assert 503 == in_virtual_time(come_without_entra, Shelf())

    def test_few_writes(self) -> None:
        """A set is written once an hour, or if it is new, however often it is fetched."""
        shelf = Shelf()

        async def flood(keys: SigningKeys, entra: Entra) -> float:
            for position in range(24 * 360):
                await ask(keys, f"k{position}", token(entra))
                await asyncio.sleep(10)
            before = len(shelf.written_at)
            entra.key_ids = ["old", "new"]
            await asyncio.sleep(61)
            await ask(keys, "new", token(entra))
            await asyncio.sleep(1)
            return len(shelf.written_at) - before

        assert 1 == in_virtual_time(flood, shelf)
        assert 20 <= len(shelf.written_at) <= 34
        assert {"old", "new"} == {jwk["kid"] for jwk in json.loads(shelf.document or b"")["keys"]}

    def test_odd_keys(self) -> None:
        """Of a set, the keys are kept that can be used, whatever lies beside them."""
        shelf = Shelf()

        async def run(keys: SigningKeys, entra: Entra) -> int:
            entra.unusable = [{"kid": ["old"]}, {"kid": {}}, {}, {"kid": "ec", "kty": "EC"}]
            entra.key_ids = ["old", "another"]
            await keys.load()
            await asyncio.sleep(1)
            return await ask(keys, "old", b"{}")

        assert 200 == in_virtual_time(run, shelf)
        kept = json.loads(shelf.document or b"")["keys"]
        assert ["another", "old"] == [jwk["kid"] for jwk in kept]

    def test_write_fails(self, caplog: pytest.LogCaptureFixture) -> None:
        """That harms nobody, and is said once until it works again."""
        shelf = Shelf()

        async def run(keys: SigningKeys, entra: Entra) -> list[int]:
            del entra
            told = []
            for fails in (True, False, True):
                shelf.fails = fails
                caplog.clear()
                await keys.load()
                await asyncio.sleep(5 * HOUR)
                assert 200 == await ask(keys, "old", b"{}")
                told.append(caplog.text.count("signing_keys_not_kept"))
            return told

        assert [1, 0, 1] == in_virtual_time(run, shelf)

    def test_entra_says_no_date(self, caplog: pytest.LogCaptureFixture) -> None:
        """A set of an unknown age is not kept."""
        shelf = Shelf()

        async def run(keys: SigningKeys, entra: Entra) -> None:
            entra.says_date = False
            await keys.load()
            await asyncio.sleep(1)

        in_virtual_time(run, shelf)

        assert [] == shelf.written_at
        assert "without Date" in caplog.text
