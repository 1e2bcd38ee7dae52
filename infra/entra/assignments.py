"""Gives users, groups and tenants access to an ACS resource as Entra ID users.

The operations are a preview, and have no SDK: `Entra ID Assignments` of
https://learn.microsoft.com/rest/api/communication/identity/
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from infra.entra.rest import Call, segment
from shared.identifiers import GUID

if TYPE_CHECKING:
    from collections.abc import Iterable

    from infra.entra.directory import Object
    from infra.entra.rest import Service

API_VERSION = "api-version=2025-03-02-preview"
PATH = "/access/entra/assignments"
KINDS = ("user", "group", "tenant")


@dataclass(frozen=True, slots=True)
class Assignment:
    """Who has access, in which tenant, with tokens of which apps."""

    kind: str
    object_id: str
    tenant_id: str
    client_ids: frozenset[str]

    @classmethod
    def read(cls, shown: Object) -> Assignment:
        """Return an assignment as ACS shows it.

        Raises:
            ValueError: it is something else; the message quotes none of it.
        """
        try:
            kind = str(shown["principalType"]).lower()
            if kind not in KINDS:
                raise ValueError(f"its principalType is not one of {', '.join(KINDS)}")
            return cls(
                kind,
                _guid(shown["objectId"], "objectId"),
                _guid(shown["tenantId"], "tenantId"),
                frozenset(_guid(each, "clientIds") for each in shown["clientIds"]),
            )
        except KeyError as exc:
            raise ValueError(f"this is not an assignment, it has no {exc}") from exc
        except TypeError:
            raise ValueError("this is not an assignment") from None

    def shown(self) -> Object:
        """Return the assignment as ACS shows it."""
        return {
            "objectId": self.object_id,
            "principalType": self.kind,
            "tenantId": self.tenant_id,
            "clientIds": sorted(self.client_ids),
        }

    def __str__(self) -> str:
        apps = ", ".join(sorted(self.client_ids))
        whose = "" if self.kind == "tenant" else f" of tenant {self.tenant_id}"
        return f"{self.kind} {self.object_id}{whose} with {apps}"


def _guid(value: object, name: str) -> str:
    text = str(value).lower()
    if not GUID.fullmatch(text):
        raise ValueError(f"its {name} has something other than a GUID")
    return text


def read(entries: Iterable[Object]) -> list[Assignment]:
    """Return the assignments in a list as ACS shows it.

    Raises:
        ValueError: an entry is something else; the message says which one.
    """
    found = []
    for number, each in enumerate(entries, 1):
        try:
            found.append(Assignment.read(each))
        except ValueError as exc:
            raise ValueError(f"entry {number}: {exc}") from None
    return found


def listed(acs: Service) -> list[Assignment]:
    """Return all assignments of the resource."""
    return read(acs.list(PATH))


def to_assign(present: Iterable[Assignment], wanted: Assignment) -> Call | None:
    """Return the call that adds an assignment, or its apps to one that is there.

    Raises:
        ValueError: the object has access as something else.
    """
    before = _same_object(present, wanted)
    if before and (before.kind, before.tenant_id) != (wanted.kind, wanted.tenant_id):
        raise ValueError(
            f"{wanted.object_id} has access already, but as {before}; unassign that first"
        )
    client_ids = wanted.client_ids | (before.client_ids if before else frozenset())
    if before and client_ids == before.client_ids:
        return None
    return _put(Assignment(wanted.kind, wanted.object_id, wanted.tenant_id, client_ids))


def to_unassign(
    present: Iterable[Assignment], object_id: str, client_ids: frozenset[str]
) -> Call | None:
    """Return the call that takes access away: with all apps, or only with those given."""
    before = next((each for each in present if each.object_id == object_id), None)
    if before is None or (client_ids and not client_ids & before.client_ids):
        return None
    left = before.client_ids - client_ids if client_ids else frozenset()
    if left:
        return _put(Assignment(before.kind, before.object_id, before.tenant_id, left))
    return Call(f"remove {before}", "DELETE", f"{PATH}/{segment(object_id)}")


def _put(assignment: Assignment) -> Call:
    body = assignment.shown()
    del body["objectId"]
    return Call(f"assign {assignment}", "PUT", f"{PATH}/{segment(assignment.object_id)}", body)


def _same_object(present: Iterable[Assignment], wanted: Assignment) -> Assignment | None:
    return next((each for each in present if each.object_id == wanted.object_id), None)
