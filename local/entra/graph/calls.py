"""A request to the local Microsoft Graph: whose it is, what it asks for, and how it is answered.

https://learn.microsoft.com/graph/query-parameters
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from aiohttp import web

from local.entra.graph.errors import bad_request, unsupported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from local.entra.objects import Tenant, User
    from local.entra.tokens import TokenIssuer

    Document = Mapping[str, Any]
    Handler = Callable[["Call"], web.Response]

PAGE_SIZE, LARGEST_PAGE = 100, 999
_QUERY = frozenset({"$filter", "$select", "$top", "$skiptoken", "$count", "$expand", "$orderby"})
_EQUALS = re.compile(r"(?P<name>\w+) eq (?P<value>'(?:[^']|'')*'|true|false|null|[0-9a-f-]{36})")
_ANY = re.compile(r"(?P<name>\w+)/any\((\w+):\s*\2 eq (?P<value>'(?:[^']|'')*')\)")
_STARTS = re.compile(r"startswith\((?P<name>\w+),\s*(?P<value>'(?:[^']|'')*')\)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request whose caller may make it.

    `user` is the person who signed in, None if an app calls on its own. `keys` are the parts of the
    path that name objects, `prefers` is the header `Prefer`.
    """

    entra: TokenIssuer
    tenant: Tenant
    user: User | None
    path: str
    query: Mapping[str, str]
    body: bytes
    prefers: str
    keys: Mapping[str, str]

    def members(self) -> dict[str, Any]:
        """Return the members of the body.

        Raises:
            GraphError: it is not a JSON object.
        """
        try:
            value = json.loads(self.body)
        except ValueError as exc:
            raise bad_request("Unable to read JSON request payload.", "BadRequest") from exc
        if not isinstance(value, dict):
            raise bad_request("Unable to read JSON request payload.", "BadRequest")
        return value

    def text(self, members: Mapping[str, Any], name: str) -> str:
        """Return a member that must be there.

        Raises:
            GraphError: it is not there, or is no text.
        """
        value = members.get(name)
        if not isinstance(value, str) or not value:
            raise bad_request(f"A value is required for property '{name}' of the resource.")
        return value

    def one(self, kind: str, document: Document, *, status: int = 200) -> web.Response:
        """Answer with one object."""
        context = f"{self.entra.url}/v1.0/$metadata#{kind}/$entity"
        return web.json_response(
            {"@odata.context": context, **self._select(document)}, status=status
        )

    def many(self, kind: str, documents: Iterable[Document]) -> web.Response:
        """Answer with those objects that the query wants, in pages."""
        found = [each for each in documents if self._wants(each)]
        top = self.query.get("$top", str(PAGE_SIZE))
        skip = self.query.get("$skiptoken", "0")
        if not top.isdecimal() or not 1 <= int(top) <= LARGEST_PAGE or not skip.isdecimal():
            raise unsupported(f"Invalid page size specified: '{top}'.")
        end = int(skip) + int(top)
        body: dict[str, Any] = {
            "@odata.context": f"{self.entra.url}/v1.0/$metadata#{kind}",
            "value": [self._select(each) for each in found[int(skip) : end]],
        }
        if "$count" in self.query:
            body["@odata.count"] = len(found)
        if end < len(found):
            query = urlencode({**self.query, "$skiptoken": str(end)}, safe="$,'()")
            body["@odata.nextLink"] = f"{self.entra.url}{self.path}?{query}"
        return web.json_response(body)

    def _select(self, document: Document) -> Document:
        if unknown := self.query.keys() - _QUERY:
            raise unsupported(f"Unrecognized query argument specified: '{min(unknown)}'.")
        wanted = [name.strip() for name in self.query.get("$select", "").split(",") if name.strip()]
        return {name: document.get(name) for name in wanted} if wanted else document

    def _wants(self, document: Document) -> bool:
        clauses = self.query.get("$filter", "")
        return all(_fits(each, document) for each in clauses.split(" and ") if each)


def nothing() -> web.Response:
    """Answer that it is done."""
    return web.Response(status=204)


def _fits(clause: str, document: Document) -> bool:
    """Return whether a clause of a filter holds; those that are not emulated are refused."""
    clause = clause.strip()
    tests: list[tuple[re.Pattern[str], Callable[[Any, Any], bool]]] = [
        (_EQUALS, lambda have, value: _lower(have) == _lower(value)),
        (_ANY, lambda have, value: value in (have or ())),
        (_STARTS, lambda have, value: str(have).lower().startswith(value.lower())),
    ]
    for pattern, holds in tests:
        if match := pattern.fullmatch(clause):
            if match["name"] not in document:
                break
            return holds(document[match["name"]], _literal(match["value"]))
    raise unsupported(f"Unsupported or invalid query filter clause specified: '{clause}'.")


def _literal(text: str) -> object:
    constants = {"true": True, "false": False, "null": None}
    return text[1:-1].replace("''", "'") if text.startswith("'") else constants.get(text, text)


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value
