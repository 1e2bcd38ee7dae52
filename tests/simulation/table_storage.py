"""Table Storage: tables with ETags, and clients with the interface of azure-data-tables."""

from __future__ import annotations

import functools
import re
from bisect import bisect_left
from itertools import count
from typing import TYPE_CHECKING, Any

from azure.core.async_paging import AsyncList
from azure.core.exceptions import (
    ResourceExistsError,
    ResourceModifiedError,
    ResourceNotFoundError,
)
from azure.data.tables import TableEntity, TableErrorCode, UpdateMode

from tests.simulation.network import error

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Callable, Mapping
    from datetime import datetime

    from tests.simulation.network import Machine, Network

Key = tuple[str, str]
Properties = dict[str, Any]
_TOKEN = re.compile(r"'(?:[^']|'')*'|[()]|[^\s()]+")
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda left, right: bool(left == right),
    "ne": lambda left, right: bool(left != right),
    "lt": lambda left, right: bool(left < right),
    "le": lambda left, right: bool(left <= right),
    "gt": lambda left, right: bool(left > right),
    "ge": lambda left, right: bool(left >= right),
}


class Server:
    """One table. Each method is one request, applied at once; it returns the answer or an error."""

    def __init__(self, network: Network, observe: Any = None) -> None:
        self.rows: dict[Key, Properties] = {}
        self._kept: dict[Key, tuple[str, datetime]] = {}
        self._network = network
        self._observe = observe
        self._etags = count()

    def get(self, partition: str, row: str) -> Any:
        properties = self.rows.get((partition, row))
        if properties is None:
            return error(ResourceNotFoundError, 404, TableErrorCode.RESOURCE_NOT_FOUND)
        return self._entity((partition, row), properties)

    def create(self, entity: Properties) -> Any:
        if (entity["PartitionKey"], entity["RowKey"]) in self.rows:
            return error(ResourceExistsError, 409)
        return self.put(entity)

    def update(self, entity: Properties, etag: str | None, *, merge: bool = False) -> Any:
        key = (entity["PartitionKey"], entity["RowKey"])
        if key not in self.rows:
            return error(ResourceNotFoundError, 404, TableErrorCode.RESOURCE_NOT_FOUND)
        if etag is not None and etag != self._kept[key][0]:
            return error(ResourceModifiedError, 412, TableErrorCode.UPDATE_CONDITION_NOT_SATISFIED)
        return self.put(self.rows[key] | entity if merge else entity)

    def update_merging(self, entity: Properties, etag: str | None) -> Any:
        return self.update(entity, etag, merge=True)

    def merge(self, entity: Properties) -> Any:
        key = (entity["PartitionKey"], entity["RowKey"])
        return self.put(self.rows.get(key, {}) | entity)

    def put(self, entity: Properties) -> Any:
        """Write a row, whatever was there."""
        key = (entity["PartitionKey"], entity["RowKey"])
        before = self.rows.get(key)
        self.rows[key] = entity
        etag = f"W/{next(self._etags)}"
        self._kept[key] = (etag, self._network.now())
        if self._observe is not None:
            self._observe(key, before, entity)
        return {"etag": etag, "date": None, "version": None}

    def delete(self, partition: str, row: str, etag: str | None) -> Any:
        key = (partition, row)
        before = self.rows.get(key)
        if before is None:
            return None  # The SDK does not raise its 404.
        if etag is not None and etag != self._kept[key][0]:
            return error(ResourceModifiedError, 412, TableErrorCode.UPDATE_CONDITION_NOT_SATISFIED)
        del self.rows[key], self._kept[key]
        if self._observe is not None:
            self._observe(key, before, None)
        return None

    def drop(self, key: Key) -> None:
        """Lose a row, as a disaster does."""
        del self.rows[key], self._kept[key]

    def query(
        self,
        condition: str,
        parameters: Mapping[str, Any] | None,
        select: list[str] | None,
        start: Mapping[str, str] | None,
        size: int,
    ) -> tuple[list[TableEntity], dict[str, str] | None]:
        matches = _matcher(condition) if condition else None
        keys = sorted(self.rows)
        first = bisect_left(keys, (start["PartitionKey"], start["RowKey"])) if start else 0
        found: list[TableEntity] = []
        for position in range(first, len(keys)):
            key = keys[position]
            if len(found) == size:
                return found, {"PartitionKey": key[0], "RowKey": key[1]}
            properties = self.rows[key]
            if matches is None or matches(properties, parameters or {}):
                found.append(self._entity(key, properties, select))
        return found, None

    def _entity(
        self, key: Key, properties: Properties, select: list[str] | None = None
    ) -> TableEntity:
        entity = TableEntity(
            properties
            if select is None
            else {name: properties[name] for name in select if name in properties}
        )
        etag, timestamp = self._kept[key]
        shows_time = select is None or "Timestamp" in select
        entity._metadata = {
            "etag": etag,
            "timestamp": timestamp if shows_time else None,
        }
        return entity


class Client:
    """A machine's client of a table."""

    def __init__(self, machine: Machine, network: Network, server: Server, page_size: int) -> None:
        self._machine = machine
        self._network = network
        self._server = server
        self._page_size = page_size

    def _send(self, apply: Callable[..., Any], *args: Any, hook: Any = None) -> asyncio.Future[Any]:
        return self._network.send(self._machine, "table", apply, args, hook)

    def get_entity(
        self, partition_key: str, row_key: str, *, raw_response_hook: Any = None
    ) -> asyncio.Future[Any]:
        return self._send(self._server.get, partition_key, row_key, hook=raw_response_hook)

    def create_entity(self, entity: Mapping[str, Any]) -> asyncio.Future[Any]:
        return self._send(self._server.create, _stored(entity))

    def update_entity(
        self,
        entity: Mapping[str, Any],
        mode: UpdateMode = UpdateMode.MERGE,
        *,
        etag: str | None = None,
        match_condition: object = None,
    ) -> asyncio.Future[Any]:
        replaces = mode is UpdateMode.REPLACE
        update = self._server.update if replaces else self._server.update_merging
        assert etag or match_condition is None, "the SDK refuses a condition without an ETag"
        conditional = etag if match_condition is not None else None
        return self._send(update, _stored(entity), conditional)

    def upsert_entity(
        self, entity: Mapping[str, Any], mode: UpdateMode = UpdateMode.MERGE
    ) -> asyncio.Future[Any]:
        write = self._server.put if mode is UpdateMode.REPLACE else self._server.merge
        return self._send(write, _stored(entity))

    def delete_entity(
        self,
        partition_key: str,
        row_key: str,
        *,
        etag: str | None = None,
        match_condition: object = None,
    ) -> asyncio.Future[Any]:
        assert etag or match_condition is None, "the SDK refuses a condition without an ETag"
        conditional = etag if match_condition is not None else None
        return self._send(self._server.delete, partition_key, row_key, conditional)

    def query_entities(
        self,
        query_filter: str,
        *,
        results_per_page: int,
        parameters: Mapping[str, Any] | None = None,
        select: list[str] | None = None,
        raw_response_hook: Any = None,
        read_timeout: float | None = None,
    ) -> _Paged:
        del read_timeout
        size = min(results_per_page, self._page_size)

        def ask(start: Mapping[str, str] | None) -> asyncio.Future[Any]:
            return self._send(
                *(self._server.query, query_filter, parameters, select, start, size),
                hook=raw_response_hook,
            )

        return _Paged(ask)

    def list_entities(self, **options: Any) -> _Paged:
        return self.query_entities("", **options)


class _Paged:
    def __init__(self, ask: Callable[[Mapping[str, str] | None], asyncio.Future[Any]]) -> None:
        self._ask = ask

    def by_page(self, continuation_token: Mapping[str, str] | None = None) -> _Pages:
        return _Pages(self._ask, continuation_token)


class _Pages:
    """Pages as azure.core's AsyncPageIterator gives them: a failed page can be asked for again."""

    def __init__(self, ask: Any, start: Mapping[str, str] | None) -> None:
        self._ask = ask
        self._is_first = True
        self.continuation_token = start

    async def __anext__(self) -> AsyncIterator[TableEntity]:
        if self.continuation_token is None and not self._is_first:
            raise StopAsyncIteration
        entities, self.continuation_token = await self._ask(self.continuation_token)
        self._is_first = False
        return AsyncList(entities)


def _stored(entity: Mapping[str, Any]) -> Properties:
    return {name: value for name, value in entity.items() if value is not None}


@functools.cache
def _matcher(condition: str) -> Callable[[Properties, Mapping[str, Any]], bool]:
    """Return a function for a filter: comparisons joined by `or`, which binds less, and `and`."""
    alternatives: list[list[tuple[str, Callable[[Any, Any], bool], str]]] = [[]]
    words = _TOKEN.findall(condition)
    for position in range(0, len(words), 4):
        name, operator, literal = words[position : position + 3]
        alternatives[-1].append((name, _OPERATORS[operator], literal))
        if words[position + 3 : position + 4] == ["or"]:
            alternatives.append([])

    def matches(properties: Properties, parameters: Mapping[str, Any]) -> bool:
        def holds(name: str, compare: Callable[[Any, Any], bool], literal: str) -> bool:
            if name not in properties:
                return False
            right = parameters[literal[1:]] if literal[0] == "@" else literal.strip("'")
            return compare(properties[name], right)

        return any(all(holds(*each) for each in group) for group in alternatives)

    return matches
