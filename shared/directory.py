"""What the broker does for administrators: list, look up, erase, revoke, renew, bring along."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING

from shared import audit
from shared.broker import user_json
from shared.clock import utc_now
from shared.errors import (
    AdminRequiredError,
    BusyError,
    ConflictError,
    IdentityGoneError,
    InvalidRequestError,
    StorageUnavailableError,
    UserNotFoundError,
)
from shared.mappings.table import State, UnreadableRow, rows_of
from shared.requests import Continuation

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from shared.acs.identity import AcsIdentity
    from shared.entra.access_tokens import Administrator
    from shared.identifiers import Person
    from shared.mappings.adoption import Adoption
    from shared.mappings.endings import Endings
    from shared.mappings.identities import Identities
    from shared.mappings.ledger import Ledger
    from shared.mappings.table import IdentityMapping, IdentityMappings
    from shared.requests import UsersQuery
    from shared.settings import AcsSettings

BROKEN = "broken"  # The state of rows that cannot be read.
PAGES = 5  # How many pages are looked through for rows that are rare.


@dataclass(frozen=True, slots=True)
class Listing:
    """A page of people, and where the next one begins."""

    users: list[dict[str, object]]
    following: Continuation | None


class Directory:
    """Lets administrators see and change the mappings of the tenants that they may administer."""

    def __init__(  # noqa: PLR0913 - each is a part that tests replace
        self,
        *,
        settings: AcsSettings,
        acs: AcsIdentity,
        mappings: IdentityMappings,
        ledger: Ledger,
        identities: Identities,
        endings: Endings,
        adoption: Adoption,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._settings = settings
        self._acs = acs
        self._mappings = mappings
        self._ledger = ledger
        self._identities = identities
        self._endings = endings
        self._adoption = adoption
        self._clock = clock

    async def find(self, administrator: Administrator, query: UsersQuery) -> Listing:
        """Return a page of the people of a tenant, or the one who has an ACS identity.

        Raises:
            AdminRequiredError: the administrator may not see the tenant.
            InvalidRequestError: the continuation token is for another query.
            StorageUnavailableError: Table Storage failed.
        """
        if query.acs_id:
            return Listing(await self._owned(administrator, query), None)
        tenant_id, state = query.tenant_id or administrator.person.tenant_id, query.state
        audit.note(target_tenant_id=tenant_id)
        _check_tenant(administrator, tenant_id)
        if query.start and (query.start.tenant_id, query.start.state) != (tenant_id, state):
            raise InvalidRequestError("the continuation token is for another query")
        position = query.start.position if query.start else None
        for _ in range(PAGES):
            try:
                page = await self._mappings.page(
                    tenant_id=tenant_id,
                    state=None if state == BROKEN else state,
                    start=position,
                    size=query.limit,
                )
            except StorageUnavailableError as error:
                if query.start and _is_bad_request(error):
                    raise InvalidRequestError("Table Storage refuses the position") from error
                raise
            rows = [row_json(row) for row in rows_of(page)]
            users = [row for row in rows if state in {None, row["state"]}]
            position = page.following
            if users or position is None:
                break
        return Listing(users, Continuation(tenant_id, state, position) if position else None)

    async def read(self, administrator: Administrator, person: Person) -> dict[str, object]:
        """Return what is stored about a person.

        Raises:
            AdminRequiredError: the administrator may not see the tenant.
            UserNotFoundError: nothing is stored.
            StorageUnavailableError: Table Storage failed, or the row cannot be read.
        """
        return row_json(await self._row(administrator, person))

    async def erase(self, administrator: Administrator, person: Person) -> bool:
        """Erase a person as `Endings.erase` does; True if it is done already."""
        _check(administrator, person)
        return await self._endings.erase(person, reason="erased_by_admin", admit=_anybody)

    async def revoke(self, administrator: Administrator, person: Person) -> bool:
        """Revoke a person's tokens as `Endings.revoke` does; True if ACS has been told."""
        _check(administrator, person)
        return await self._endings.revoke(person, admit=_anybody)

    async def adopt(self, administrator: Administrator, person: Person, acs_id: str) -> bool:
        """Give a person an existing ACS identity as `Adoption.adopt` does; True if it is new.

        Raises:
            AdminRequiredError: the administrator may not change the tenant's mappings.
            ConflictError: ACS does not know the identity, or as `Adoption.adopt`.
            BusyError, StorageUnavailableError, Upstream…Error: the table or ACS failed.
        """
        _check(administrator, person)
        audit.note(acs_id=acs_id)
        if not administrator.may_adopt:
            raise AdminRequiredError("only the operator's administrators bring identities along")
        is_known = partial(self._is_known, person)
        return await self._adoption.adopt(person, acs_id, is_known=is_known)

    async def renew(self, administrator: Administrator, person: Person) -> dict[str, object]:
        """Give a person a new identity, because ACS no longer knows the one in the row.

        Raises:
            AdminRequiredError: the administrator may not see the tenant.
            UserNotFoundError: the person has no identity.
            ConflictError: ACS does know it.
            BusyError, StorageUnavailableError, Upstream…Error: the table or ACS failed.
        """
        mapping = await self._row(administrator, person)
        if not mapping.acs_id:
            raise UserNotFoundError("no identity to renew")
        audit.note(old_acs_id=mapping.acs_id)
        foreign = not await self._acs.owns(mapping.acs_id)
        if mapping.state is State.DELETING and not foreign:
            raise UserNotFoundError("the identity is being deleted")
        if not foreign and await self._is_known(person, mapping.acs_id):
            raise ConflictError("ACS knows the identity")
        if not await self._endings.give_up(mapping, foreign=foreign):
            raise BusyError("the row has just been changed")
        renewed = await self._identities.get_or_create(person, admit=_anybody)
        audit.note(acs_id=renewed.acs_id)
        return row_json(renewed)

    async def _is_known(self, person: Person, acs_id: str) -> bool:
        """Ask ACS whether it knows an identity.

        Issuing a token is the only way to ask that changes nothing; nobody gets the token. It takes
        the person's share of ACS's quota, so that administrators do not take everybody's.
        """
        try:
            await self._acs.issue(
                acs_id,
                scopes=self._settings.scopes,
                lifetime=self._settings.lifetime,
                now=self._clock(),
                person=person,
            )
        except IdentityGoneError:
            return False
        return True

    async def _row(self, administrator: Administrator, person: Person) -> IdentityMapping:
        _check(administrator, person)
        mapping = await self._mappings.read(person)
        if mapping.state is State.ABSENT:
            raise UserNotFoundError("no row")
        return mapping

    async def _owned(
        self, administrator: Administrator, query: UsersQuery
    ) -> list[dict[str, object]]:
        """Return the person who has an identity; the row decides, not the index."""
        audit.note(acs_id=query.acs_id)
        owner = await self._ledger.owner(query.acs_id)
        if owner is None or not administrator.may_administer(owner.tenant_id):
            return []
        if query.tenant_id not in {"", owner.tenant_id}:
            return []
        mapping = await self._mappings.read(owner)
        return [row_json(mapping)] if mapping.acs_id == query.acs_id else []


def row_json(row: IdentityMapping | UnreadableRow) -> dict[str, object]:
    """Return what administrators see of a row; members without a value are left out."""
    tenant_id, object_id = row.person
    shown: dict[str, object] = {"tenantId": tenant_id, "objectId": object_id}
    if isinstance(row, UnreadableRow):
        return shown | {"state": BROKEN, "problem": row.reason}
    shown |= {
        "state": row.state.value,
        "createdOn": _date(row.created_on),
        "lastUsedOn": _date(row.last_used_on),
        "revokedBefore": _date(row.revoked_before),
        "goneOn": _date(row.gone_on),
        "deletedBecause": row.reason,
        "failures": row.failures,
        "generation": row.generation,
    }
    if row.acs_id:
        shown["user"] = user_json(row.acs_id)
    return {name: value for name, value in shown.items() if value}


def _is_bad_request(error: StorageUnavailableError) -> bool:
    return getattr(error.__cause__, "status_code", None) == HTTPStatus.BAD_REQUEST


def _date(date: datetime | None) -> str | None:
    return date.isoformat(timespec="seconds") if date else None


def _check(administrator: Administrator, person: Person) -> None:
    audit.note(target_tenant_id=person.tenant_id, target_object_id=person.object_id)
    _check_tenant(administrator, person.tenant_id)


def _check_tenant(administrator: Administrator, tenant_id: str) -> None:
    if not administrator.may_administer(tenant_id):
        raise AdminRequiredError("the administrator is of another tenant")


def _anybody(_mapping: IdentityMapping) -> None:
    """Admit administrators, whatever the row says about the person's own tokens."""
