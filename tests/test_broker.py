from __future__ import annotations

import asyncio
import base64
import json
import logging
import math
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import aiohttp
import jwt
import pytest

from local.acs.emulator import Identity
from local.entra.directory import ADA, FABRIKAM
from local.entra.emulator import EntraEmulator
from local.serving.application import serve
from shared import audit
from shared import broker as broker_module
from shared.broker import Broker, granted_lifetime, granted_scopes, refuse_revoked
from shared.entra.access_tokens import AccessTokenValidator, Caller
from shared.entra.signing_keys import SigningKeys
from shared.errors import (
    BusyError,
    IdentityGoneError,
    InvalidRequestError,
    InvalidTokenError,
    KeysUnavailableError,
    RateLimitedError,
    RevokedTokenError,
    ScopeNotAllowedError,
    StorageUnavailableError,
    TenantNotAllowedError,
    UpstreamUnavailableError,
    UserNotFoundError,
)
from shared.http import TokenRequest
from shared.identifiers import Person
from shared.mappings.identities import Identities
from shared.mappings.table import LEASE, State
from shared.settings import AcsSettings
from tests.emulated import ACS_ID, mapping_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from local.acs.emulator import AcsEmulator
    from local.entra.tokens import SigningKey
    from shared.acs.identity import AcsIdentity
    from shared.errors import (
        BrokerError,
    )
    from shared.settings import EntraSettings
    from tests.emulated import Store

HOUR = timedelta(hours=1)
SETTINGS = AcsSettings(
    endpoint="",
    access_key=None,
    scopes=("chat", "voip"),
    lifetime=HOUR,
    max_lifetime=2 * HOUR,
)
ANYTHING = TokenRequest(scopes=None, lifetime=None)


def without_times(noted: dict[str, audit.Field]) -> dict[str, audit.Field]:
    """Return the fields that are the same each time."""
    return {name: value for name, value in noted.items() if not name.endswith("_ms")}


@dataclass
class Seconds:
    """A monotonic clock that is moved by hand."""

    now: float = field(default_factory=time.monotonic)

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def seconds() -> Seconds:
    return Seconds()


@pytest.fixture
async def entra(entra_keys: list[SigningKey]) -> AsyncIterator[EntraEmulator]:
    """An Entra of the test's own."""
    emulator = EntraEmulator(keys=entra_keys)
    async with serve(emulator.application()) as url:
        emulator.url = url
        yield emulator


@pytest.fixture
async def make_broker(
    entra: EntraEmulator,
    entra_settings: EntraSettings,
    acs_identity: AcsIdentity,
    store: Store,
    seconds: Seconds,
) -> AsyncIterator[Callable[[], Broker]]:
    """Return a function that puts a process's broker together."""
    settings = replace(entra_settings, authority=entra.url)
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        made: list[SigningKeys] = []

        def make() -> Broker:
            keys = SigningKeys(
                session=session, authority=settings.authority, keys_of=settings.keys_of
            )
            made.append(keys)
            return Broker(
                settings=SETTINGS,
                validator=AccessTokenValidator(settings=settings, keys=keys),
                identities=Identities(acs=acs_identity, mappings=store.mappings, poll_seconds=0.02),
                acs=acs_identity,
                mappings=store.mappings,
                keys=keys,
                monotonic=seconds,
            )

        yield make
        for keys in made:
            keys.close()


@pytest.fixture
def broker(make_broker: Callable[[], Broker]) -> Broker:
    return make_broker()


@pytest.fixture
def caller(person: Person) -> Caller:
    """Somebody who was never here before, with a token from just now."""
    return Caller(person, None, int(time.time()))


class TestAuthenticate:
    """From token to caller."""

    async def test_caller(self, broker: Broker, entra: EntraEmulator) -> None:
        """A good token of Ada's is Ada's."""
        caller = await broker.authenticate(entra.issue_access_token())

        assert Person(ADA.tenant.tenant_id, ADA.object_id) == caller.person
        assert abs(caller.issued_at - time.time()) < 600

    async def test_refusals(self, broker: Broker, entra: EntraEmulator) -> None:
        """A token that the validator refuses is refused; for malformed text, nothing is fetched."""
        with pytest.raises(InvalidTokenError):
            await broker.authenticate("no token")
        assert 0 == entra.faults.count("jwks")
        with pytest.raises(TenantNotAllowedError):
            await broker.authenticate(entra.issue_access_token(claims=self._of_nobody(entra)))

    @staticmethod
    def _of_nobody(entra: EntraEmulator) -> dict[str, str]:
        tenant_id = "11111111-2222-4333-8444-555555555555"
        return {"tid": tenant_id, "iss": entra.issuer(tenant_id)}

    async def test_entra_is_down(self, broker: Broker, entra: EntraEmulator) -> None:
        """Without keys it is 503, and the next good request succeeds."""
        entra.faults.fail_next("openid_configuration", status=503)
        with pytest.raises(KeysUnavailableError):
            await broker.authenticate(entra.issue_access_token())

        await broker.authenticate(entra.issue_access_token())

    async def test_rate_limit(self, broker: Broker, entra: EntraEmulator, seconds: Seconds) -> None:
        """The limit is for one person, with any token; others are not affected."""
        tokens = [entra.issue_access_token() for _ in range(2)]
        for number in range(60):
            await broker.authenticate(tokens[number % 2])
        with pytest.raises(RateLimitedError) as refused:
            await broker.authenticate(tokens[0])

        await broker.authenticate(entra.issue_access_token("grace@contoso.example"))
        assert refused.value.retry_after
        seconds.now += refused.value.retry_after
        await broker.authenticate(tokens[0])

    async def test_forged_tokens_do_not_count(self, broker: Broker, entra: EntraEmulator) -> None:
        """Bad tokens in a person's name do not use up the person's requests."""
        forged = entra.issue_access_token()[:-8] + "AAAAAAAA"
        for _ in range(100):
            with pytest.raises(InvalidTokenError):
                await broker.authenticate(forged)

        await broker.authenticate(entra.issue_access_token())


class TestIssue:
    """From caller to ACS token."""

    async def test_first_call(
        self, broker: Broker, acs: AcsEmulator, store: Store, caller: Caller
    ) -> None:
        """The first call creates the identity and returns a token for it."""
        issued = await broker.issue(caller, ANYTHING)

        row = await store.row(caller.person)
        assert row is not None
        assert [issued.acs_id] == acs.created == [row["acsId"]]
        assert acs.token_is_valid(issued.token)
        claims = jwt.decode(issued.token, options={"verify_signature": False})
        assert {"chat", "voip"} == set(claims["acsScope"].split(","))
        assert abs(issued.expires_on - datetime.now(UTC) - HOUR) < timedelta(seconds=10)

    async def test_shape(self, broker: Broker, caller: Caller) -> None:
        """The answer has the shape that every published ACS client reads."""
        issued = await broker.issue(caller, ANYTHING)

        shape = issued.as_json()

        assert {"token", "expiresOn", "user"} == shape.keys()
        assert {"communicationUserId": issued.acs_id, "id": issued.acs_id} == shape["user"]
        assert issued.expires_on == datetime.fromisoformat(str(shape["expiresOn"]))
        assert issued.token not in repr(issued)

    async def test_asking_narrows(self, broker: Broker, caller: Caller) -> None:
        """Scopes and lifetime are those asked for."""
        asked = TokenRequest(scopes=frozenset({"voip"}), lifetime=2 * HOUR)

        issued = await broker.issue(caller, asked)

        claims = jwt.decode(issued.token, options={"verify_signature": False})
        assert "voip" == claims["acsScope"]
        assert abs(issued.expires_on - datetime.now(UTC) - 2 * HOUR) < timedelta(seconds=10)

    @pytest.mark.parametrize(
        ("asked", "error"),
        [
            (TokenRequest(frozenset({"voip", "voip.join"}), None), ScopeNotAllowedError),
            (TokenRequest(None, timedelta(minutes=121)), InvalidRequestError),
        ],
        ids=["more scopes", "longer"],
    )
    async def test_asking_for_more(
        self,
        broker: Broker,
        acs: AcsEmulator,
        caller: Caller,
        asked: TokenRequest,
        error: type[BrokerError],
    ) -> None:
        """A request for more than the settings allow gets no token, and creates no identity."""
        with pytest.raises(error):
            await broker.issue(caller, asked)
        assert 0 == acs.faults.count("create")

    async def test_noted(self, broker: Broker, caller: Caller) -> None:
        """The audit line has the identity and the scopes, and says if the identity is new."""
        with audit.decision() as first:
            issued = await broker.issue(caller, ANYTHING)
        with audit.decision() as second:
            await broker.issue(caller, ANYTHING)

        noted = {"acs_id": issued.acs_id, "scopes": "chat,voip"}
        assert {"acs_ms", "table_ms"} <= first.keys()
        assert noted | {"created": True} == without_times(first)
        assert noted == without_times(second)

    @pytest.mark.parametrize("slow", ["keys_ms", "acs_ms", "table_ms"])
    async def test_slow_service_is_logged(
        self, broker: Broker, acs: AcsEmulator, entra: EntraEmulator, store: Store, slow: str
    ) -> None:
        """The audit line tells whether Entra, ACS or the table kept the caller waiting."""
        faults, operation = {
            "keys_ms": (entra.faults, "jwks"),
            "acs_ms": (acs.faults, "create"),
            "table_ms": (store.faults, "table_insert"),
        }[slow]
        faults.fail_next(operation, delay=0.4)

        with audit.decision() as noted:
            await broker.issue(await broker.authenticate(entra.issue_access_token()), ANYTHING)

        assert {"keys_ms", "acs_ms", "table_ms"} <= noted.keys()
        assert 400 <= int(str(noted[slow]))

    async def test_no_secrets_in_the_log(
        self,
        broker: Broker,
        entra: EntraEmulator,
        acs: AcsEmulator,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Neither token appears in the log, whether all goes well or not."""
        caplog.set_level(logging.INFO)
        token = entra.issue_access_token()
        caller = await broker.authenticate(token)
        issued = await broker.issue(caller, ANYTHING)
        acs.faults.fail_next("issue", status=500)
        with pytest.raises(UpstreamUnavailableError):
            await broker.issue(caller, ANYTHING)

        for secret in (token, issued.token):
            for part in secret.split("."):
                assert part not in caplog.text


class TestUpstreamCalls:
    """What a token costs."""

    def calls(self, acs: AcsEmulator, store: Store) -> dict[str, int]:
        """Return how often each operation was called."""
        counts = {name: acs.faults.count(name) for name in ("create", "issue", "delete")}
        names = ("table_read", "table_insert", "table_update", "table_delete", "table_query")
        counts |= {name: store.faults.count(name) for name in names}
        return {name: count for name, count in counts.items() if count}

    async def test_first_call(
        self, broker: Broker, acs: AcsEmulator, store: Store, caller: Caller
    ) -> None:
        """The first token costs five calls."""
        await broker.issue(caller, ANYTHING)

        once = {"table_read", "table_insert", "create", "table_update", "issue"}
        assert dict.fromkeys(once, 1) == self.calls(acs, store)

    async def test_warm(
        self, broker: Broker, acs: AcsEmulator, store: Store, caller: Caller
    ) -> None:
        """A later one costs two calls, at the same time."""
        await broker.issue(caller, ANYTHING)
        acs.faults.clear()
        store.faults.clear()
        acs.faults.fail_next("issue", delay=0.5)
        store.faults.fail_next("table_read", delay=0.5)
        started = time.monotonic()

        await broker.issue(caller, ANYTHING)

        assert time.monotonic() - started < 0.95
        assert {"table_read": 1, "issue": 1} == self.calls(acs, store)

    async def test_another_process(
        self,
        make_broker: Callable[[], Broker],
        acs: AcsEmulator,
        store: Store,
        caller: Caller,
    ) -> None:
        """A process that has not seen a person before finds the existing identity."""
        first = await make_broker().issue(caller, ANYTHING)
        store.faults.clear()

        second = await make_broker().issue(caller, ANYTHING)

        assert first.acs_id == second.acs_id
        assert 1 == len(acs.created)
        assert 1 == store.faults.count("table_read")

    async def test_shared(self, broker: Broker, acs: AcsEmulator, caller: Caller) -> None:
        """Fifty equal requests at once share one token; one with another lifetime gets its own."""
        longer = TokenRequest(scopes=None, lifetime=2 * HOUR)
        tokens = await asyncio.gather(
            *(broker.issue(caller, asked) for asked in [ANYTHING, longer] * 25)
        )

        assert 2 == len({issued.token for issued in tokens})
        assert 1 == len({issued.acs_id for issued in tokens})
        assert (1, 2) == (len(acs.created), acs.faults.count("issue"))

    async def test_not_shared_by_people(self, broker: Broker, acs: AcsEmulator) -> None:
        """Other people, and the same object id in another tenant, get tokens of their own."""
        people = [Person(ADA.tenant.tenant_id, f"{number:036}") for number in range(5)]
        people.append(Person(FABRIKAM.tenant_id, people[0].object_id))
        tokens = await asyncio.gather(
            *(broker.issue(Caller(person, None, int(time.time())), ANYTHING) for person in people)
        )

        assert 6 == len({issued.token for issued in tokens}) == len(acs.created)

    async def test_not_kept(self, broker: Broker, caller: Caller) -> None:
        """A token is not kept: the next call gets a new one."""
        tokens = {(await broker.issue(caller, ANYTHING)).token for _ in range(3)}

        assert 3 == len(tokens)


class TestRememberedIdentity:
    """The remembered id makes requests faster, but decides nothing."""

    async def test_replaced(
        self, broker: Broker, acs: AcsEmulator, store: Store, caller: Caller
    ) -> None:
        """A token for an identity that the row no longer names is thrown away."""
        await broker.issue(caller, ANYTHING)
        new_id = f"{ACS_ID[:-1]}9"
        acs.identities[new_id] = Identity(new_id)
        await store.put(mapping_of(caller.person, datetime.now(UTC), acs_id=new_id))

        new = await broker.issue(caller, ANYTHING)
        again = await broker.issue(caller, ANYTHING)

        assert new_id == new.acs_id == again.acs_id
        claims = jwt.decode(new.token, options={"verify_signature": False})
        assert new_id == f"8:{claims['skypeid']}"

    async def test_erased(
        self, broker: Broker, acs: AcsEmulator, store: Store, caller: Caller
    ) -> None:
        """If the row and the identity are gone, a new identity is created."""
        old = await broker.issue(caller, ANYTHING)
        acs.identities.clear()
        row = await store.row(caller.person)
        assert row is not None
        await store.rows.delete_entity(row["PartitionKey"], row["RowKey"])

        new = await broker.issue(caller, ANYTHING)

        assert old.acs_id != new.acs_id
        assert acs.token_is_valid(new.token)

    async def test_being_deleted(
        self, broker: Broker, store: Store, caller: Caller, acs: AcsEmulator
    ) -> None:
        """While the row says deleting, the token that was issued meanwhile is not handed out."""
        issued = await broker.issue(caller, ANYTHING)
        now = datetime.now(UTC)
        row = mapping_of(caller.person, now, acs_id=issued.acs_id, state=State.DELETING)
        await store.put(replace(row, lease_until=now + LEASE))

        with pytest.raises(BusyError):
            await broker.issue(caller, ANYTHING)
        assert 2 == acs.faults.count("issue")

    async def test_table_fails(self, broker: Broker, store: Store, caller: Caller) -> None:
        """If the row cannot be read, the token that was issued meanwhile is not handed out."""
        await broker.issue(caller, ANYTHING)
        store.faults.fail_next("table_read", status=403)

        with pytest.raises(StorageUnavailableError):
            await broker.issue(caller, ANYTHING)

    async def test_acs_fails(self, broker: Broker, acs: AcsEmulator, caller: Caller) -> None:
        """If ACS fails, it is asked once, and the next request succeeds."""
        await broker.issue(caller, ANYTHING)
        acs.faults.fail_next("issue", status=503)

        with pytest.raises(UpstreamUnavailableError):
            await broker.issue(caller, ANYTHING)
        assert 2 == acs.faults.count("issue")
        await broker.issue(caller, ANYTHING)

    @pytest.mark.parametrize("warm", [False, True])
    async def test_gone(
        self,
        make_broker: Callable[[], Broker],
        acs: AcsEmulator,
        store: Store,
        caller: Caller,
        warm: bool,
    ) -> None:
        """If ACS has lost the identity, the answer is 409; no other one is created."""
        broker = make_broker()
        await broker.issue(caller, ANYTHING)
        acs.identities.clear()
        before = await store.row(caller.person)

        with pytest.raises(IdentityGoneError):
            await (broker if warm else make_broker()).issue(caller, ANYTHING)
        assert before == await store.row(caller.person)
        assert 1 == acs.faults.count("create")


class TestRevoked:
    """A person has signed out everywhere."""

    @pytest.mark.parametrize("warm", [False, True])
    async def test_older_token(
        self,
        broker: Broker,
        acs: AcsEmulator,
        store: Store,
        caller: Caller,
        warm: bool,
    ) -> None:
        """A token from before the sign-out is refused everywhere; one from after it is not."""
        now = datetime.now(UTC)
        acs_id = (await broker.issue(caller, ANYTHING)).acs_id if warm else ACS_ID
        if not warm:
            acs.identities[ACS_ID] = Identity(ACS_ID)
        mark = now + timedelta(seconds=30)
        await store.put(mapping_of(caller.person, now, acs_id=acs_id, revoked_before=mark))

        for use in (
            broker.issue(caller, ANYTHING),
            broker.find_user(caller),
            broker.create_user(caller),
        ):
            with pytest.raises(RevokedTokenError) as refused:
                await use
        challenge = refused.value.challenge()
        assert "insufficient_claims" == challenge["error"]
        claims = json.loads(base64.b64decode(challenge["claims"]))
        second = str(math.ceil(mark.timestamp()))
        assert {"access_token": {"nbf": {"essential": True, "value": second}}} == claims

        later = replace(caller, issued_at=int(second))
        assert acs_id == (await broker.issue(later, ANYTHING)).acs_id

    @pytest.mark.parametrize(
        ("issued_at", "refused"), [(99, True), (100, True), (101, False)], ids=str
    )
    def test_to_the_second(self, person: Person, issued_at: int, refused: bool) -> None:
        """`iat` has whole seconds: a token from the second of the sign-out may be older."""
        mark = datetime.fromtimestamp(100.5, UTC)
        mapping = mapping_of(person, mark, revoked_before=mark)
        caller = Caller(person, None, issued_at)

        if refused:
            with pytest.raises(RevokedTokenError):
                refuse_revoked(caller, mapping)
        else:
            refuse_revoked(caller, mapping)

    async def test_shared_work(
        self, broker: Broker, acs: AcsEmulator, store: Store, caller: Caller
    ) -> None:
        """Of two requests at once, only the one with the newer Entra token gets an ACS token."""
        now = datetime.now(UTC)
        acs.identities[ACS_ID] = Identity(ACS_ID)
        await store.put(mapping_of(caller.person, now, revoked_before=now))
        older, newer = (replace(caller, issued_at=int(now.timestamp()) + n) for n in (-9, 9))

        outcomes = await asyncio.gather(
            broker.issue(older, ANYTHING), broker.issue(newer, ANYTHING), return_exceptions=True
        )

        assert isinstance(outcomes[0], RevokedTokenError)
        assert not isinstance(outcomes[1], BaseException)
        assert 1 == acs.faults.count("issue")


class TestUser:
    """The caller's own mapping."""

    async def test_create_and_find(self, broker: Broker, acs: AcsEmulator, caller: Caller) -> None:
        """There is no identity before it is created, and it stays the same; no token is issued."""
        with pytest.raises(UserNotFoundError):
            await broker.find_user(caller)
        made = await broker.create_user(caller)

        assert made == await broker.create_user(caller) == await broker.find_user(caller)
        assert [made] == acs.created
        assert 0 == acs.faults.count("issue")

    async def test_not_yet(self, broker: Broker, store: Store, caller: Caller) -> None:
        """An identity that is being created or deleted does not count."""
        for state in (State.CREATING, State.DELETING):
            await store.put(mapping_of(caller.person, datetime.now(UTC), state=state))
            with pytest.raises(UserNotFoundError):
                await broker.find_user(caller)


class TestReady:
    """Whether tokens can be issued."""

    async def test_cached(
        self, broker: Broker, entra: EntraEmulator, acs: AcsEmulator, store: Store, seconds: Seconds
    ) -> None:
        """A hundred probes in ten seconds ask each service once, and ACS never."""
        await asyncio.gather(*(broker.check_ready() for _ in range(50)))
        seconds.now += 9
        for _ in range(50):
            await broker.check_ready()
        assert (1, 1) == (entra.faults.count("jwks"), store.faults.count("table_read"))

        seconds.now += 1
        await broker.check_ready()
        assert (1, 2) == (entra.faults.count("jwks"), store.faults.count("table_read"))
        assert 0 == sum(acs.faults.count(name) for name in ("create", "issue", "get"))

    @pytest.mark.parametrize(
        ("service", "operation", "error"),
        [
            ("entra", "jwks", KeysUnavailableError),
            ("store", "table_read", StorageUnavailableError),
        ],
    )
    async def test_not_ready(
        self,
        broker: Broker,
        entra: EntraEmulator,
        store: Store,
        seconds: Seconds,
        service: str,
        operation: str,
        error: type[BrokerError],
    ) -> None:
        """A failure is repeated for ten seconds, and then the services are asked again."""
        faults = {"entra": entra.faults, "store": store.faults}[service]
        faults.fail_next(operation, status=403)
        for _ in range(50):
            with pytest.raises(error) as raised:
                await broker.check_ready()
        # The traceback of the kept error must not grow with each raise.
        assert len(raised.traceback) < 5

        seconds.now += broker_module.READY_SECONDS
        await broker.check_ready()


class TestGranted:
    """What may be asked for."""

    @pytest.mark.parametrize(
        ("asked", "granted"),
        [
            (None, {"chat", "voip"}),
            ({"chat"}, {"chat"}),
            ({"voip", "chat"}, {"chat", "voip"}),
        ],
    )
    def test_scopes(self, asked: set[str] | None, granted: set[str]) -> None:
        """All that the settings allow, or those asked for."""
        assert granted == granted_scopes(None if asked is None else frozenset(asked), SETTINGS)

    @pytest.mark.parametrize("asked", [{"chat.join"}, {"chat", "voip", "voip.join"}])
    def test_more_scopes(self, asked: set[str]) -> None:
        """One scope too many is refused, not left out."""
        with pytest.raises(ScopeNotAllowedError):
            granted_scopes(frozenset(asked), SETTINGS)

    def test_lifetime(self) -> None:
        """The default, or the one asked for, up to the maximum."""
        assert HOUR == granted_lifetime(None, SETTINGS)
        assert 2 * HOUR == granted_lifetime(2 * HOUR, SETTINGS)
        with pytest.raises(InvalidRequestError):
            granted_lifetime(2 * HOUR + timedelta(minutes=1), SETTINGS)
