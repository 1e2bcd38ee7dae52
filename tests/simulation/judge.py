"""What must never be, seen from outside: the rows, ACS, and what callers were told."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from shared.mappings.endings import MARK_LIFETIME
from shared.mappings.table import partition_key
from tests.simulation.acs import RESOURCE
from tests.simulation.network import EPOCH, EPOCH_SECONDS

if TYPE_CHECKING:
    from datetime import datetime

    from shared.identifiers import Person
    from tests.simulation.acs import Identity
    from tests.simulation.acs import Server as Acs
    from tests.simulation.network import Network

IDLE = timedelta(days=90)
# A touched row says "used" for a day after its last use, and a token lives for a day at most.
UNUSED = (IDLE - timedelta(days=2)).total_seconds()
ENTRA_TOKEN_SECONDS = 4000  # So long are Entra tokens used here; marks outlive them.
ERASED = {"erased_by_user", "erased_by_admin"}

Key = tuple[str, str]
Properties = dict[str, Any]


class HandedOut(NamedTuple):
    """A token that a caller was given."""

    person: Person
    acs_id: str
    token: str
    issued_at: int  # Of the caller's Entra token.
    begun: float
    answered: float


class Ended(NamedTuple):
    """A revocation or erasure that was answered: done, or stored to be done."""

    kind: str
    person: Person
    cut: int  # Entra tokens from before this Unix time are refused from now on.
    begun: float
    answered: float
    is_done: bool
    acs_id: str  # What the row named at the beginning.


class Condemned(NamedTuple):
    """An identity that a row gave up."""

    at: float
    reason: str
    key: Key


@dataclass(slots=True)
class Judge:
    """Watches every write, deletion and answer, and looks at what is left in the end."""

    network: Network
    acs: Acs = field(init=False)
    ledger: dict[Key, Properties] = field(init=False)
    violations: list[str] = field(default_factory=list)
    handed_out: list[HandedOut] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)
    condemned: dict[str, Condemned] = field(default_factory=dict)
    erasing: dict[Key, float] = field(default_factory=dict)  # Since when somebody asked for it.
    in_use: dict[str, Key] = field(default_factory=dict)  # By identity: whose active row names it.
    marks: dict[Key, datetime] = field(default_factory=dict)
    owners: dict[str, Person] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)  # Identities that somebody was given a token of.
    adopted: set[str] = field(default_factory=set)  # Or were to be: an administrator's choice.
    adoptable: set[str] = field(default_factory=set)
    revoking: list[tuple[Person, float]] = field(default_factory=list)  # And when it began.
    collateral: int = 0  # Tokens that a revocation killed which had begun before the request.
    unreferenced: int = 0  # Identities that nobody can name and that never had a token.

    def blame(self, what: str) -> None:
        """Note a violation."""
        self.network.log(f"    VIOLATION: {what}")
        self.violations.append(what)

    def on_row(self, key: Key, before: Properties | None, after: Properties | None) -> None:
        """Watch a write to the table of mappings."""
        self._check_mark(key, before, after)
        old_id = before.get("acsId") if before and before["state"] == "active" else None
        new_id = after.get("acsId") if after and after["state"] == "active" else None
        if old_id and old_id != new_id:
            self.in_use.pop(old_id, None)
            reason = "dropped"
            if after is not None and after["state"] == "deleting" and after.get("acsId") == old_id:
                reason = str(after.get("reason") or "nothing")
            self._condemn(old_id, reason, key)
        if new_id and old_id != new_id:
            if self.in_use.setdefault(new_id, key) != key:
                self.blame(f"shared: two active rows name {new_id}")
            orphan = self.ledger.get(("orphan", new_id))
            if new_id in self.adopted and orphan and not _is_verified(orphan, key):
                self.blame(f"brought along: {new_id} is about to be deleted")
            identity = self.acs.identities.get(new_id)
            if (
                identity
                and identity.deleted_at is not None
                and new_id not in self.adopted  # It was there when the administrator asked.
                # A backup may hold people whom the prune timer has removed since.
                and not self._is_pruned(new_id)
            ):
                self.blame(f"dangling: an active row names {new_id}, which was deleted before")

    def _is_pruned(self, acs_id: str) -> bool:
        return acs_id in self.condemned and self.condemned[acs_id].reason == "idle"

    def _check_mark(self, key: Key, before: Properties | None, after: Properties | None) -> None:
        old = before.get("revokedBefore") if before else None
        new = after.get("revokedBefore") if after else None
        if new is not None:
            self.marks[key] = new
        if old is None or (new is not None and new >= old):
            return
        if self.network.now() < old + MARK_LIFETIME:
            self.blame(f"mark lost: {old} became {new}")

    def _condemn(self, acs_id: str, reason: str, key: Key) -> None:
        if acs_id in self.condemned:
            return
        now = self.network.loop.now
        self.condemned[acs_id] = Condemned(now, reason, key)
        identity = self.acs.identities.get(acs_id)
        if reason in ERASED:
            if key not in self.erasing:
                self.blame(f"erased unasked: {acs_id}")
        elif reason == "gone":
            if identity and identity.deleted_at is None:
                self.blame(f"given up though ACS knows it: {acs_id}")
        elif reason not in {"idle", "foreign"}:
            self.blame(f"condemned: {acs_id} because of {reason}")

    def on_delete(self, identity: Identity) -> None:
        """Watch ACS delete an identity."""
        acs_id = identity.acs_id
        if acs_id in self.in_use:
            self.blame(f"dangling: {acs_id} was deleted while an active row names it")
        if acs_id in self.owners and acs_id not in self.condemned:
            self.blame(f"deleted: {acs_id} was handed out, and no row gave it up")

    def on_token(self, given: HandedOut) -> None:
        """Watch a caller be given a token."""
        person, acs_id = given.person, given.acs_id
        if self.owners.setdefault(acs_id, person) != person:
            self.blame(f"shared: {acs_id} was handed out to two people")
        self.used.add(acs_id)
        end = self.condemned.get(acs_id)
        if end is not None and given.begun > end.at:
            self.blame(f"dead: {acs_id} was given up ({end.reason}) before the request began")
        for earlier in reversed(self.handed_out):
            if earlier.person == person and earlier.answered < given.begun:
                if earlier.acs_id != acs_id and earlier.acs_id not in self.condemned:
                    self.blame(f"two identities: {earlier.acs_id}, then {acs_id}")
                break
        for each in self.ended:
            is_over = each.answered < given.begun < each.answered + ENTRA_TOKEN_SECONDS
            if each.person == person and is_over and given.issued_at < each.cut:
                self.blame(f"served after {each.kind}: an Entra token from before it")
            is_older = self.acs.identities[acs_id].created_at < each.begun
            if (
                each.person == person
                and each.kind == "erase"
                and each.answered < given.begun
                and is_older
                and acs_id not in self.adopted
            ):
                self.blame(f"back after an erasure: {acs_id}")
        if self.acs.tokens[given.token].identity.acs_id != acs_id:
            self.blame(f"a token of another identity than {acs_id}")
        self.handed_out.append(given)

    def on_end(self, ended: Ended) -> None:
        """Watch a caller be told that a revocation or an erasure is stored or done."""
        self.ended.append(ended)
        if ended.kind == "erase" and ended.is_done and ended.acs_id:
            identity = self.acs.identities.get(ended.acs_id)
            is_alive = identity is not None and identity.deleted_at is None
            # An earlier erasure may have given it up, and a token request moved it to the ledger.
            if is_alive and ("orphan", ended.acs_id) not in self.ledger:
                self.blame(f"erased, but {ended.acs_id} is alive and not in the ledger")

    def on_error(self, operation: str, error: BaseException) -> None:
        """Watch an operation end in an error that nobody foresaw."""
        self.blame(f"unforeseen: {operation} raised {type(error).__name__}: {error}")

    def forget(self, rows: dict[Key, Properties]) -> None:
        """Forget what was before a disaster, but for the rows that are left."""
        self.handed_out.clear()
        self.owners.clear()
        self.condemned.clear()
        self.in_use = {row["acsId"]: key for key, row in rows.items() if row["state"] == "active"}

    def judge(self, rows: dict[Key, Properties]) -> None:
        """Look at what is left when everything has settled."""
        self._judge_tokens()
        named = self._judge_rows(rows)
        self._judge_identities(named)
        self._judge_ledger(rows, named)

    def _judge_tokens(self) -> None:
        for given in self.handed_out:
            end = self.condemned.get(given.acs_id)
            if end is not None and end.reason == "idle" and end.at - given.answered < UNUSED:
                self.blame(f"pruned: {given.acs_id} was in use")
            for each in self.ended:
                if (
                    each.person == given.person
                    and given.issued_at < each.cut
                    # A token from long before has expired by itself.
                    and given.answered > each.begun - 86400
                    and self.acs.is_live(given.token)
                ):
                    when = "before" if given.answered < each.begun else "after"
                    self.blame(f"a token is alive after {each.kind}, issued {when} it began")
            self.collateral += self._is_collateral(given)

    def _is_collateral(self, given: HandedOut) -> bool:
        identity = self.acs.tokens[given.token].identity
        if identity.deleted_at is not None or self.acs.is_live(given.token):
            return False
        person = given.person
        mark = self.marks.get((partition_key(person), person.object_id))
        if mark is not None and given.issued_at < mark.timestamp():
            return False  # It was meant.
        return all(begun < given.begun for who, begun in self.revoking if who == person)

    def _judge_rows(self, rows: dict[Key, Properties]) -> dict[str, Key]:
        named: dict[str, Key] = {}
        for key, row in rows.items():
            state = row["state"]
            if is_foreign(row.get("acsId", "")):
                continue  # It cannot be deleted here, and waits for an administrator.
            if state != "active":
                self.blame(f"stuck: the row of {key[1][:8]} is {state}")
                continue
            acs_id = row["acsId"]
            if acs_id in named:
                self.blame(f"shared: two rows name {acs_id}")
            named[acs_id] = key
            identity = self.acs.identities.get(acs_id)
            is_dead = identity and identity.deleted_at is not None and not identity.is_lost
            if is_dead and acs_id not in self.adopted:
                self.blame(f"dangling: the row names {acs_id}, which is deleted")
            left = {"leaseUntil", "revokeAgain"} & row.keys()
            if left:
                self.blame(f"stuck: an active row with {', '.join(sorted(left))}")
        return named

    def _judge_identities(self, named: dict[str, Key]) -> None:
        unreferenced = 0
        for acs_id, identity in self.acs.identities.items():
            if identity.deleted_at is not None or acs_id in named or identity.is_foreign:
                continue
            if acs_id in self.adopted:
                continue  # An administrator took it from the one whose it was.
            if acs_id in self.used:
                self.blame(f"leaked: {acs_id} had a token, and nothing names it")
            else:
                unreferenced += 1
        self.unreferenced = unreferenced
        if unreferenced > self.network.faults:
            self.blame(f"{unreferenced} unreferenced after {self.network.faults} faults")

    def _judge_ledger(self, rows: dict[Key, Properties], named: dict[str, Key]) -> None:
        index = {}
        # What these people's rows wait for is not done by a timer.
        waiting = {
            f"{partition.partition('_')[0]}_{object_id}"
            for (partition, object_id), row in rows.items()
            if is_foreign(row.get("acsId", ""))
        }
        for (partition, row_key), entity in self.ledger.items():
            if is_foreign(partition + row_key):
                continue
            if partition == "orphan":
                self.blame(f"left in the ledger: {row_key} because of {entity.get('reason')}")
            elif partition == "unfinished":
                if row_key not in waiting:
                    self.blame("left in the ledger: unfinished work")
            elif row_key == partition:
                index[partition] = (
                    f"{entity['tenantId']}_{entity['objectId'][:2]}",
                    entity["objectId"],
                )
        for acs_id, key in named.items():
            if index.pop(acs_id, None) != key:
                self.blame(f"not in the index: {acs_id}")
        for acs_id in index:
            self.blame(f"left in the index: {acs_id}")


def _is_verified(orphan: Properties, key: Key) -> bool:
    """Return whether an entry for an identity that a row comes to name is struck off unharmed.

    Whoever made an identity writes these when its row slips away: `unconfirmed`, because a write
    that comes late may yet name it, and `lost_lease`, because another request changed the row. If
    the person's own row names it after all, the sweep sees that first.
    """
    if orphan["reason"] == "unconfirmed":
        return True
    return orphan["reason"] == "lost_lease" and orphan.get("objectId") == key[1]


def is_foreign(text: str) -> bool:
    """Return whether something is about an identity of another ACS resource than ours."""
    return "8:acs:" in text and RESOURCE not in text


def second_of(time: float) -> int:
    """Return a time of the simulation as the Unix time in a token: whole seconds."""
    return EPOCH_SECONDS + int(time)


def time_of(date: datetime) -> float:
    """Return a date as a time of the simulation."""
    return (date - EPOCH).total_seconds()
