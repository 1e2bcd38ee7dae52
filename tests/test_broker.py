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
from azure.communication.identity.aio import CommunicationIdentityClient
from azure.core.credentials import AzureKeyCredential

from local.acs.emulator import AcsEmulator, Identity
from local.entra.directory import ADA, CONTOSO, FABRIKAM, GRACE
from local.serving.application import serve
from shared import audit
from shared import broker as broker_module
from shared.acs.identity import AcsIdentity
from shared.broker import Broker, refuse_revoked
from shared.entra.access_tokens import AccessTokenValidator, Caller
from shared.entra.signing_keys import SigningKeys
from shared.errors import (
    AdminRequiredError,
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
    UpstreamThrottledError,
    UpstreamUnavailableError,
    UserNotFoundError,
)
from shared.identifiers import Person
from shared.mappings.attempts import TableTime
from shared.mappings.endings import ANNOUNCED_FOR, RENEWALS_A_DAY, Endings
from shared.mappings.identities import SETTLED_AFTER, Identities
from shared.mappings.table import LEASE, State
from shared.requests import TokenRequest
from shared.settings import AcsSettings
from tests.emulated import ACS_ID, mapping_of, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from local.entra.emulator import EntraEmulator
    from shared.broker import IssuedToken
    from shared.errors import BrokerError
    from shared.settings import EntraSettings
    from shared.sweep import Sweeper
    from tests.emulated import Clock, Store

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


def settle(clock: Clock) -> None:
    """Let the time pass until a revocation is complete, and its entry in the ledger is old.

    The rows' own time runs on during a test.
    """
    clock.advance(seconds=(SETTLED_AFTER + ANNOUNCED_FOR).total_seconds() + 10)


def token_of(outcome: IssuedToken | BaseException) -> str:
    """Return the ACS token that a request ended in."""
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome.token


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
async def make_broker(
    entra: EntraEmulator,
    entra_settings: EntraSettings,
    acs_identity: AcsIdentity,
    store: Store,
    seconds: Seconds,
) -> AsyncIterator[Callable[..., Broker]]:
    """Return a function that puts a process's broker together."""
    settings = replace(entra_settings, authority=entra.url)
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        made: list[SigningKeys] = []

        def make(acs: AcsIdentity = acs_identity) -> Broker:
            parts = {"acs": acs, "mappings": store.mappings, "ledger": store.ledger}
            identities = Identities(**parts, poll_seconds=0.02)  # type: ignore[arg-type]
            keys = SigningKeys(
                session=session, authority=settings.authority, keys_of=settings.keys_of
            )
            made.append(keys)
            return Broker(
                settings=SETTINGS,
                validator=AccessTokenValidator(settings=settings, keys=keys),
                identities=identities,
                endings=Endings(**parts, identities=identities),  # type: ignore[arg-type]
                acs=acs,
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


@pytest.fixture
def fresh(caller: Caller) -> Caller:
    """The same person, with a token from after everything that a test does."""
    return replace(caller, issued_at=caller.issued_at + 3600)


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


class TestAuthenticateAdministrator:
    """From token to administrator."""

    async def test_administrator(self, broker: Broker, entra: EntraEmulator) -> None:
        """Grace has the role; Ada has not."""
        administrator = await broker.authenticate_administrator(
            entra.issue_access_token(GRACE.user_name)
        )

        assert Person(GRACE.tenant.tenant_id, GRACE.object_id) == administrator.person
        assert administrator.may_administer(CONTOSO.tenant_id)
        assert not administrator.may_administer(FABRIKAM.tenant_id)
        with pytest.raises(AdminRequiredError):
            await broker.authenticate_administrator(entra.issue_access_token())

    async def test_rate_limit(self, broker: Broker, entra: EntraEmulator) -> None:
        """Administrators have a limit of their own, which is higher."""
        token = entra.issue_access_token(GRACE.user_name)
        for _ in range(300):
            await broker.authenticate_administrator(token)

        with pytest.raises(RateLimitedError):
            await broker.authenticate_administrator(token)

    async def test_revoked(self, broker: Broker, entra: EntraEmulator) -> None:
        """An administrator who has signed out everywhere needs a new token."""
        now = int(time.time())
        old = entra.issue_access_token(GRACE.user_name)
        new = entra.issue_access_token(GRACE.user_name, claims={"iat": now + 30, "nbf": now})
        await broker.revoke(await broker.authenticate(old))

        with pytest.raises(RevokedTokenError):
            await broker.authenticate_administrator(old)
        await broker.authenticate_administrator(new)


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
        """The first token costs seven calls; two of them write the index and read it."""
        await broker.issue(caller, ANYTHING)

        once = dict.fromkeys(("table_insert", "create", "issue"), 1)
        assert once | {"table_read": 2, "table_update": 2} == self.calls(acs, store)

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

    async def test_throttled(
        self, broker: Broker, acs: AcsEmulator, store: Store, caller: Caller
    ) -> None:
        """While ACS limits us, nothing is read or sent for a request, and nobody is let in."""
        await broker.issue(caller, ANYTHING)
        newcomer = replace(caller, person=Person(caller.person.tenant_id, "0" * 36))
        acs.faults.fail_next("issue", status=429)
        with pytest.raises(UpstreamThrottledError):
            await broker.issue(caller, ANYTHING)
        acs.faults.clear()
        store.faults.clear()

        for each in (caller, newcomer):
            with pytest.raises(UpstreamThrottledError):
                await broker.issue(each, ANYTHING)

        assert {} == self.calls(acs, store)
        with pytest.raises(UpstreamThrottledError):
            await broker.create_user(newcomer)
        assert await store.row(newcomer.person) is None

    async def test_another_process(
        self,
        make_broker: Callable[[], Broker],
        acs: AcsEmulator,
        store: Store,
        caller: Caller,
    ) -> None:
        """A process that has not seen a person before finds the identity, and asks the index."""
        first = await make_broker().issue(caller, ANYTHING)
        store.faults.clear()

        second = await make_broker().issue(caller, ANYTHING)

        assert first.acs_id == second.acs_id
        assert 1 == len(acs.created)
        assert 2 == store.faults.count("table_read")

    async def test_index_is_read_meanwhile(
        self, make_broker: Callable[[], Broker], store: Store, caller: Caller, acs: AcsEmulator
    ) -> None:
        """The index is read while ACS issues, so nobody waits for it."""
        await make_broker().issue(caller, ANYTHING)
        acs.faults.clear()
        store.faults.clear()
        acs.faults.fail_next("issue", delay=1.5)
        store.faults.fail_next("table_read")  # Of the row; the next one is of the index.
        store.faults.fail_next("table_read", delay=1.5)
        started = time.monotonic()
        issuing = asyncio.create_task(make_broker().issue(caller, ANYTHING))

        await until(lambda: (1, 2) == (acs.faults.count("issue"), store.faults.count("table_read")))

        assert time.monotonic() - started < 1.5  # None of the two has been answered.
        await issuing

    async def test_shared(self, broker: Broker, acs: AcsEmulator, caller: Caller) -> None:
        """Fifty equal requests at once share one token; one with another lifetime gets its own."""
        longer = TokenRequest(scopes=None, lifetime=2 * HOUR)
        await broker.issue(caller, ANYTHING)
        acs.faults.clear()
        tokens = await asyncio.gather(
            *(broker.issue(caller, asked) for asked in [ANYTHING, longer] * 25)
        )

        assert 2 == len({issued.token for issued in tokens})
        assert 1 == len({issued.acs_id for issued in tokens})
        assert (1, 2) == (len(acs.created), acs.faults.count("issue"))

    async def test_first_calls(self, broker: Broker, acs: AcsEmulator, caller: Caller) -> None:
        """Fifty first requests at once create one identity, and each gets a token for it."""
        tokens = await asyncio.gather(*(broker.issue(caller, ANYTHING) for _ in range(50)))

        assert {acs.created[0]} == {issued.acs_id for issued in tokens}
        assert all(acs.token_is_valid(issued.token) for issued in tokens)
        assert 1 == len(acs.created)

    async def test_not_shared_by_entra_tokens(
        self, broker: Broker, acs: AcsEmulator, caller: Caller
    ) -> None:
        """Two Entra tokens do not share one ACS token: only one of them may be revoked."""
        await broker.issue(caller, ANYTHING)
        later = replace(caller, issued_at=caller.issued_at + 1)
        tokens = await asyncio.gather(broker.issue(caller, ANYTHING), broker.issue(later, ANYTHING))

        assert 2 == len({issued.token for issued in tokens})
        assert 3 == acs.faults.count("issue")

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
        """If the identity is being deleted, the person gets another one at once."""
        old = await broker.issue(caller, ANYTHING)
        now = datetime.now(UTC)
        row = mapping_of(caller.person, now, acs_id=old.acs_id, state=State.DELETING)
        await store.put(replace(row, lease_until=now + LEASE, reason="idle"))

        new = await broker.issue(caller, ANYTHING)

        assert old.acs_id != new.acs_id
        assert {old.acs_id: "idle"} == await store.orphans()
        assert acs.token_is_valid(new.token)

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


class TestSharedIdentity:
    """Two rows name one identity, since somebody edited a row or restored it from elsewhere."""

    @pytest.fixture
    def thief(self, caller: Caller) -> Caller:
        """Somebody whose row has come to name the caller's identity."""
        return replace(caller, person=Person(caller.person.tenant_id, f"{1:036}"))

    @pytest.fixture
    async def acs_id(self, broker: Broker, store: Store, caller: Caller, thief: Caller) -> str:
        """The identity. Both rows were used just now, so no use has to be recorded."""
        acs_id = (await broker.issue(caller, ANYTHING)).acs_id
        await store.put(mapping_of(thief.person, datetime.now(UTC), acs_id=acs_id))
        return acs_id

    @pytest.mark.parametrize("ask", ["issue", "find_user", "create_user"])
    async def test_refused(
        self,
        broker: Broker,
        caller: Caller,
        thief: Caller,
        acs_id: str,
        ask: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Whoever is not in the index gets nothing, and is named; the other person is served."""
        asked = (ANYTHING,) if ask == "issue" else ()
        with pytest.raises(StorageUnavailableError, match="somebody else's identity"):
            await getattr(broker, ask)(thief, *asked)

        assert acs_id == (await broker.issue(caller, ANYTHING)).acs_id
        lines = [json.loads(message) for message in caplog.messages]
        found = [line for line in lines if line["event"] == "identity_shared"]
        assert [(acs_id, thief.person.object_id)] == [
            (line["acs_id"], line["object_id"]) for line in found
        ]

    async def test_row_changes_under_us(
        self, broker: Broker, store: Store, caller: Caller, thief: Caller
    ) -> None:
        """A process that has served a person does not trust another id in the person's row."""
        mine = await broker.issue(caller, ANYTHING)
        own = await broker.issue(thief, ANYTHING)
        await store.put(mapping_of(thief.person, datetime.now(UTC), acs_id=mine.acs_id))

        with pytest.raises(StorageUnavailableError):
            await broker.issue(thief, ANYTHING)
        await store.put(mapping_of(thief.person, datetime.now(UTC), acs_id=own.acs_id))
        assert own.acs_id == (await broker.issue(thief, ANYTHING)).acs_id

    async def test_no_entry(
        self,
        make_broker: Callable[[], Broker],
        store: Store,
        caller: Caller,
        thief: Caller,
        acs_id: str,
    ) -> None:
        """If the index was lost, the first of the two to ask gets the identity, the other none."""
        await store.ledger.forget_owner(acs_id, None)

        assert acs_id == (await make_broker().issue(thief, ANYTHING)).acs_id
        assert thief.person == await store.ledger.owner(acs_id)
        with pytest.raises(StorageUnavailableError):
            await make_broker().issue(caller, ANYTHING)

    async def test_index_is_out_of_reach(
        self, make_broker: Callable[[], Broker], store: Store, caller: Caller
    ) -> None:
        """Without the index, a person whom the process does not know gets no token."""
        await make_broker().issue(caller, ANYTHING)
        store.faults.fail_next("table_read")
        store.faults.fail_next("table_read", status=503, times=3)

        with pytest.raises(StorageUnavailableError):
            await make_broker().issue(caller, ANYTHING)


@pytest.fixture
async def elsewhere() -> AsyncIterator[tuple[AcsEmulator, AcsIdentity]]:
    """Another ACS resource, and the broker's client of it."""
    key = base64.b64encode(b"worthless").decode()
    emulator = AcsEmulator(access_key=key, resource_id="ac5ac5ac-0000-4000-8000-000000000002")
    async with (
        serve(emulator.application()) as url,
        CommunicationIdentityClient(url, AzureKeyCredential(key)) as client,
    ):
        yield emulator, AcsIdentity(client=client)


class TestGone:
    """ACS no longer knows an identity."""

    @pytest.mark.parametrize("warm", [False, True])
    async def test_healed(
        self,
        make_broker: Callable[..., Broker],
        acs: AcsEmulator,
        store: Store,
        caller: Caller,
        warm: bool,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """One person on our own resource gets a new identity in the same request."""
        broker = make_broker()
        old = await broker.issue(caller, ANYTHING)
        acs.identities.clear()

        new = await (broker if warm else make_broker()).issue(caller, ANYTHING)

        row = await store.row(caller.person)
        assert row is not None
        assert old.acs_id != new.acs_id == row["acsId"]
        assert (2, State.ACTIVE, None) == (row["generation"], row["state"], row.get("goneOn"))
        assert acs.token_is_valid(new.token)
        assert f'"event": "identity_given_up", "acs_id": "{old.acs_id}"' in caplog.text

    async def test_brake(
        self, broker: Broker, acs: AcsEmulator, store: Store, clock: Clock
    ) -> None:
        """A few people a day are helped; the others are told to wait, and nothing is replaced."""
        callers = [
            Caller(Person(CONTOSO.tenant_id, f"{number:036}"), None, int(time.time()))
            for number in range(RENEWALS_A_DAY + 2)
        ]
        old = [(await broker.issue(each, ANYTHING)).acs_id for each in callers]
        acs.identities.clear()
        *healed, fourth, fifth = callers
        for each in healed:
            await broker.issue(each, ANYTHING)
        created = len(acs.created)

        for use in (
            broker.issue(fourth, ANYTHING),
            broker.issue(fifth, ANYTHING),
            broker.issue(fourth, ANYTHING),
            broker.find_user(fourth),
            broker.create_user(fourth),
        ):
            with pytest.raises(IdentityGoneError) as raised:
                await use
        assert raised.value.retry_after == 60
        assert created == len(acs.created)
        for each, acs_id in zip([fourth, fifth], old[-2:], strict=True):
            row = await store.row(each.person)
            assert row is not None
            assert (State.ACTIVE, acs_id, 1) == (row["state"], row["acsId"], row["generation"])
            assert "goneOn" in row

        clock.advance(days=1)
        assert (await broker.issue(fourth, ANYTHING)).acs_id not in old

    async def test_wrong_endpoint(
        self,
        make_broker: Callable[..., Broker],
        acs: AcsEmulator,
        store: Store,
        caller: Caller,
        elsewhere: tuple[AcsEmulator, AcsIdentity],
    ) -> None:
        """If the endpoint is another resource's, nothing is replaced; it works again afterwards."""
        before = await make_broker().issue(caller, ANYTHING)
        other, client = elsewhere
        lost = make_broker(client)

        for _ in range(RENEWALS_A_DAY + 1):
            with pytest.raises(IdentityGoneError):
                await lost.issue(caller, ANYTHING)
        for use in (lost.find_user(caller), lost.create_user(caller)):
            with pytest.raises(IdentityGoneError):
                await use
        row = await store.row(caller.person)
        assert row is not None
        assert (State.ACTIVE, before.acs_id, 1) == (row["state"], row["acsId"], row["generation"])
        assert {} == other.identities  # The one that was made to learn its id is deleted again.

        assert before.acs_id == (await make_broker().issue(caller, ANYTHING)).acs_id
        assert before.acs_id == await make_broker().find_user(caller)
        assert [before.acs_id] == list(acs.identities)

    async def test_no_lock_for_the_mark(
        self, broker: Broker, acs: AcsEmulator, store: Store, caller: Caller
    ) -> None:
        """If the row cannot be marked, the caller is told of the table; the next one is helped."""
        await broker.issue(caller, ANYTHING)
        acs.identities.clear()
        store.faults.fail_next("table_update", status=403)

        with pytest.raises(StorageUnavailableError):
            await broker.issue(caller, ANYTHING)
        assert acs.token_is_valid((await broker.issue(caller, ANYTHING)).token)


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
    async def test_to_the_second(self, person: Person, issued_at: int, refused: bool) -> None:
        """`iat` has whole seconds: a token from the second of the sign-out may be older."""
        mark = datetime.fromtimestamp(100.5, UTC)
        read = TableTime(mark, asyncio.get_running_loop().time())
        mapping = mapping_of(person, mark, revoked_before=mark, read=read)
        caller = Caller(person, None, issued_at)

        if refused:
            with pytest.raises(RevokedTokenError):
                refuse_revoked(caller, mapping)
        else:
            refuse_revoked(caller, mapping)

    @pytest.mark.parametrize(("minutes", "refused"), [(4, True), (6, False)])
    async def test_mark_in_the_future(
        self,
        broker: Broker,
        acs: AcsEmulator,
        store: Store,
        caller: Caller,
        minutes: int,
        refused: bool,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A mark that no clock can have set is our fault, not the token's: 503, and it is named."""
        now = datetime.now(UTC)
        acs.identities[ACS_ID] = Identity(ACS_ID)
        mark = now + timedelta(minutes=minutes)
        await store.put(mapping_of(caller.person, now, revoked_before=mark))

        with pytest.raises(RevokedTokenError if refused else StorageUnavailableError):
            await broker.issue(caller, ANYTHING)

        assert ("mapping_in_future" in caplog.text) != refused
        assert (caller.person.object_id in caplog.text) != refused

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


class TestRevoke:
    """Sign out everywhere: no token for an older Entra token, and none that lives on."""

    async def test_no_token_lives_on(
        self,
        make_broker: Callable[..., Broker],
        acs: AcsEmulator,
        caller: Caller,
        sweeper: Sweeper,
        store: Store,
        clock: Clock,
    ) -> None:
        """The tokens are dead at once, and the old Entra token gets none in any process."""
        processes = [make_broker(), make_broker()]
        issued = [await each.issue(caller, ANYTHING) for each in processes * 2]

        assert await processes[0].revoke(caller)

        assert not any(acs.token_is_valid(each.token) for each in issued)
        for broker in [*processes, make_broker()]:
            for use in (
                broker.issue(caller, ANYTHING),
                broker.find_user(caller),
                broker.create_user(caller),
            ):
                with pytest.raises(RevokedTokenError):
                    await use
        settle(clock)
        assert 1 == (await sweeper.run()).finished
        assert [] == await store.unfinished()

    @pytest.mark.parametrize(
        ("slow", "fault", "warm"),
        [
            pytest.param("issue", {"delay": 0.7}, True, id="issued beside the row"),
            pytest.param("issue", {"delay": 0.7}, False, id="issued after the row"),
            pytest.param("table_read", {"drip": 0.0005}, False, id="row read slowly"),
            pytest.param("table_read", {"drip": 0.0005}, True, id="row read slowly beside"),
        ],
    )
    async def test_request_in_flight(
        self,
        make_broker: Callable[..., Broker],
        acs: AcsEmulator,
        store: Store,
        caller: Caller,
        sweeper: Sweeper,
        clock: Clock,
        slow: str,
        fault: dict[str, float],
        warm: bool,
    ) -> None:
        """A request that read the row before the mark gets a token; it is dead after the sweep."""
        broker = make_broker()
        await broker.issue(caller, ANYTHING)
        faults = acs.faults if slow == "issue" else store.faults
        before = faults.count(slow)
        faults.fail_next(slow, **fault)
        request = asyncio.create_task((broker if warm else make_broker()).issue(caller, ANYTHING))
        await until(lambda: faults.count(slow) > before)
        await asyncio.sleep(0.1)

        assert await broker.revoke(caller)
        assert not request.done()
        outcome = (await asyncio.gather(request, return_exceptions=True))[0]

        if slow == "issue":
            assert acs.token_is_valid(token_of(outcome)), "ACS revoked it although it came later"
        await sweeper.run()  # Too early: more of them may be under way.
        assert [caller.person] == await store.unfinished()
        settle(clock)
        await sweeper.run()
        # If the read took too long, it was repeated, and the mark was seen.
        if not isinstance(outcome, RevokedTokenError):
            assert not acs.token_is_valid(token_of(outcome))
        assert [] == await store.unfinished()

    async def test_identity_in_the_making(
        self,
        broker: Broker,
        acs: AcsEmulator,
        store: Store,
        caller: Caller,
        sweeper: Sweeper,
        clock: Clock,
    ) -> None:
        """A first request in flight gets no token, and the identity that it made is deleted."""
        acs.faults.fail_next("create", delay=0.5)
        request = asyncio.create_task(broker.issue(caller, ANYTHING))
        await until(lambda: acs.faults.count("create") == 1)

        assert await broker.revoke(caller)
        with pytest.raises(RevokedTokenError):
            await request
        clock.advance(minutes=10)
        await sweeper.run()

        assert not acs.issued
        assert {} == acs.identities
        assert {} == await store.orphans()

    async def test_identity_that_was_replaced(
        self,
        broker: Broker,
        acs: AcsEmulator,
        store: Store,
        caller: Caller,
        sweeper: Sweeper,
        clock: Clock,
    ) -> None:
        """Tokens of an identity that is in the ledger are dead, too."""
        old = await broker.issue(caller, ANYTHING)
        row = mapping_of(caller.person, clock.now, acs_id=old.acs_id, state=State.DELETING)
        await store.put(row)
        new = await broker.issue(caller, ANYTHING)

        await broker.revoke(caller)
        clock.advance(minutes=10)
        await sweeper.run()

        assert not acs.token_is_valid(old.token)
        assert not acs.token_is_valid(new.token)

    @pytest.mark.parametrize("times", [1, 9], ids=["once", "for long"])
    async def test_acs_fails(
        self,
        broker: Broker,
        acs: AcsEmulator,
        store: Store,
        caller: Caller,
        sweeper: Sweeper,
        clock: Clock,
        times: int,
    ) -> None:
        """If ACS cannot be told now, it is told later; the Entra token is refused at once."""
        issued = await broker.issue(caller, ANYTHING)
        acs.faults.fail_next("revoke", status=503, times=times)

        assert not await broker.revoke(caller)

        with pytest.raises(RevokedTokenError):
            await broker.issue(caller, ANYTHING)
        assert acs.token_is_valid(issued.token)
        settle(clock)
        await sweeper.run()
        acs.faults.clear()
        await sweeper.run()
        assert not acs.token_is_valid(issued.token)
        assert [] == await store.unfinished()

    async def test_table_fails(
        self, broker: Broker, acs: AcsEmulator, store: Store, caller: Caller
    ) -> None:
        """If the mark cannot be stored, the caller is told so, and ACS is not asked."""
        await broker.issue(caller, ANYTHING)
        store.faults.fail_next("table_read", status=403)

        with pytest.raises(StorageUnavailableError):
            await broker.revoke(caller)
        assert 0 == acs.faults.count("revoke")

    async def test_twice(
        self, broker: Broker, store: Store, caller: Caller, fresh: Caller, clock: Clock
    ) -> None:
        """Repeating it with the same token is fine, and does not touch a later sign-in."""
        await broker.issue(caller, ANYTHING)
        assert await broker.revoke(caller)
        marked = await store.row(caller.person)
        assert await broker.revoke(caller)
        assert marked == await store.row(caller.person)

        clock.advance(minutes=1)
        issued = await broker.issue(fresh, ANYTHING)
        assert await broker.revoke(caller)
        assert issued.acs_id == (await broker.issue(fresh, ANYTHING)).acs_id

    async def test_nobody(
        self, broker: Broker, acs: AcsEmulator, caller: Caller, fresh: Caller
    ) -> None:
        """Somebody without an identity is answered the same, and the mark counts the same."""
        assert await broker.revoke(caller)
        assert await broker.revoke(caller)

        with pytest.raises(RevokedTokenError):
            await broker.issue(caller, ANYTHING)
        assert 0 == len(acs.created)
        assert acs.token_is_valid((await broker.issue(fresh, ANYTHING)).token)

    async def test_signing_in_again(
        self,
        broker: Broker,
        acs: AcsEmulator,
        caller: Caller,
        fresh: Caller,
        sweeper: Sweeper,
        clock: Clock,
    ) -> None:
        """A fresh sign-in waits until its token is safe from the second revocation."""
        before = await broker.issue(caller, ANYTHING)
        await broker.revoke(caller)

        with pytest.raises(BusyError) as raised:
            await broker.issue(fresh, ANYTHING)
        assert raised.value.retry_after is not None
        assert 15 < raised.value.retry_after < 25
        settle(clock)
        issued = [await broker.issue(fresh, ANYTHING) for _ in range(3)]
        await sweeper.run()

        assert {before.acs_id} == {each.acs_id for each in issued}
        assert all(acs.token_is_valid(each.token) for each in issued)
        assert 2 == acs.faults.count("revoke")

    async def test_joins_no_older_call(
        self, broker: Broker, acs: AcsEmulator, caller: Caller, fresh: Caller, clock: Clock
    ) -> None:
        """A fresh request is not given a token that the second revocation has caught."""
        await broker.issue(caller, ANYTHING)
        await broker.revoke(caller)
        settle(clock)
        acs.faults.clear()
        # ACS makes the token at once, and its answer takes a while.
        acs.faults.fail_next("issue", drip=0.002)
        first = asyncio.create_task(broker.issue(fresh, ANYTHING))
        await until(lambda: acs.faults.count("revoke") == 1)
        with pytest.raises(RevokedTokenError):
            await broker.issue(caller, ANYTHING)  # Now the identity is not remembered any more.

        second = await broker.issue(fresh, ANYTHING)

        assert not first.done()
        assert acs.token_is_valid(second.token)
        assert acs.token_is_valid((await first).token)

    async def test_noted(self, broker: Broker, caller: Caller) -> None:
        """The audit line has the identity and the mark."""
        issued = await broker.issue(caller, ANYTHING)
        with audit.decision() as noted:
            await broker.revoke(caller)

        assert issued.acs_id == noted["acs_id"]
        assert abs(
            datetime.fromisoformat(str(noted["revoked_before"])) - datetime.now(UTC)
        ) < timedelta(seconds=30)


class TestErase:
    """Erasure: the identity and its tokens are gone, and only a new sign-in gets another."""

    async def test_erased(
        self, broker: Broker, acs: AcsEmulator, store: Store, caller: Caller, fresh: Caller
    ) -> None:
        """Twice with the same token is fine; a fresh one gets the next generation."""
        old = await broker.issue(caller, ANYTHING)

        assert await broker.erase(caller)
        assert await broker.erase(caller)

        assert {} == acs.identities
        assert not acs.token_is_valid(old.token)
        for use in (
            broker.issue(caller, ANYTHING),
            broker.create_user(caller),
            broker.find_user(caller),
        ):
            with pytest.raises(RevokedTokenError):
                await use
        with pytest.raises(UserNotFoundError):
            await broker.find_user(fresh)
        new = await broker.issue(fresh, ANYTHING)
        row = await store.row(caller.person)
        assert row is not None
        assert old.acs_id != new.acs_id == row["acsId"]
        assert 2 == row["generation"]

    async def test_old_token_afterwards(
        self, broker: Broker, acs: AcsEmulator, caller: Caller, fresh: Caller
    ) -> None:
        """The old Entra token cannot erase what a later sign-in has got."""
        await broker.issue(caller, ANYTHING)
        await broker.erase(caller)
        new = await broker.issue(fresh, ANYTHING)

        with pytest.raises(RevokedTokenError):
            await broker.erase(caller)
        assert acs.token_is_valid(new.token)
        assert await broker.erase(fresh)

    async def test_nobody(
        self, broker: Broker, acs: AcsEmulator, store: Store, caller: Caller
    ) -> None:
        """Somebody who was never here is answered the same, and what is stored looks the same."""
        assert await broker.erase(caller)
        assert await broker.erase(caller)

        with pytest.raises(RevokedTokenError):
            await broker.issue(caller, ANYTHING)
        assert [] == acs.created
        row = await store.row(caller.person)
        assert row is not None
        assert (State.ERASED, None) == (row["state"], row.get("acsId"))

    async def test_after_a_revocation(self, broker: Broker, caller: Caller, fresh: Caller) -> None:
        """A token that was revoked may not erase: whoever has it may be a thief."""
        await broker.issue(caller, ANYTHING)
        await broker.revoke(caller)

        with pytest.raises(RevokedTokenError):
            await broker.erase(caller)
        assert await broker.erase(fresh)

    @pytest.mark.parametrize("wait", [0, 0.3], ids=["while it is issued", "a little later"])
    async def test_request_in_flight(
        self, broker: Broker, acs: AcsEmulator, caller: Caller, wait: float
    ) -> None:
        """A request in flight gets a dead token or is refused; nothing is made anew."""
        await broker.issue(caller, ANYTHING)
        acs.faults.fail_next("issue", delay=0.4)
        request = asyncio.create_task(broker.issue(caller, ANYTHING))
        await asyncio.sleep(wait)

        assert await broker.erase(caller)
        outcome = (await asyncio.gather(request, return_exceptions=True))[0]

        assert isinstance(outcome, RevokedTokenError) or (
            not isinstance(outcome, BaseException) and not acs.token_is_valid(outcome.token)
        )
        assert {} == acs.identities
        assert 1 == len(acs.created)

    async def test_identity_in_the_making(
        self,
        broker: Broker,
        acs: AcsEmulator,
        caller: Caller,
        sweeper: Sweeper,
        clock: Clock,
    ) -> None:
        """A first request in flight is refused, and what it made is deleted."""
        acs.faults.fail_next("create", delay=0.5)
        request = asyncio.create_task(broker.issue(caller, ANYTHING))
        await until(lambda: acs.faults.count("create") == 1)

        assert await broker.erase(caller)
        with pytest.raises(RevokedTokenError):
            await request
        clock.advance(minutes=10)
        await sweeper.run()

        assert {} == acs.identities
        assert not acs.issued

    async def test_acs_fails(
        self,
        broker: Broker,
        acs: AcsEmulator,
        store: Store,
        caller: Caller,
        sweeper: Sweeper,
        clock: Clock,
    ) -> None:
        """If ACS is down, it is stored and done later; the Entra token is refused at once."""
        await broker.issue(caller, ANYTHING)
        acs.faults.fail_next("delete", status=503, times=2)

        assert not await broker.erase(caller)
        assert not await broker.erase(caller)
        with pytest.raises(RevokedTokenError):
            await broker.issue(caller, ANYTHING)

        clock.advance(minutes=11)
        await sweeper.run()
        assert {} == acs.identities
        row = await store.row(caller.person)
        assert row is not None
        assert State.ERASED == row["state"]
        assert [] == await store.unfinished()

    async def test_signing_in_while_acs_fails(
        self,
        broker: Broker,
        acs: AcsEmulator,
        caller: Caller,
        fresh: Caller,
        sweeper: Sweeper,
        clock: Clock,
    ) -> None:
        """A fresh sign-in need not wait for the deletion: it gets another identity."""
        old = await broker.issue(caller, ANYTHING)
        acs.faults.fail_next("delete", status=503)
        await broker.erase(caller)

        new = await broker.issue(fresh, ANYTHING)
        clock.advance(minutes=10)
        await sweeper.run()

        assert old.acs_id != new.acs_id
        assert [new.acs_id] == list(acs.identities)
        assert acs.token_is_valid(new.token)


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
