"""Keeps the last good set of signing keys for processes that start while Entra is out of reach.

A kept set goes through every check of a fetched one again. It is used only by a process that could
not fetch any, until it can, and for a day at most. Whoever can write where it is kept could bring
keys of their own, so a kept set never opens what administrators may do (`is_kept`), and it never
proves that a key does not exist.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Protocol

from shared import audit, strict_json
from shared.entra.key_sets import MAX_AGE, reason_of

if TYPE_CHECKING:
    from datetime import datetime

    from shared.entra.key_sets import KeySet, Publisher

# All times are in seconds.
AHEAD = 60  # By how much Entra's clock may be ahead of the store's.
KEEP_AGAIN = 45 * 60  # So that each hourly refresh is kept, but not each fetch on demand.
# What a set is judged by. Certificates, which nothing here looks at, are most of its size.
_METADATA = ("issuer", "jwks_uri", "cloud_instance_name")
_MEMBERS = ("kty", "use", "alg", "key_ops", "kid", "n", "e", "issuer", "cloud_instance_name")


class Documents(Protocol):
    """Where documents are kept: `shared.mappings.kept_documents.KeptDocuments`."""

    async def write(self, name: str, document: bytes) -> None:
        """Keep a document, in place of an earlier one."""

    async def read(self, name: str) -> tuple[bytes, datetime] | None:
        """Return a document that is as it was written, and the time on the store's clock."""


class KeptKeys:
    """The last good set of one publisher.

    Args:
        documents: where it is kept.
        publisher: whose keys they are.
    """

    def __init__(self, documents: Documents, publisher: Publisher) -> None:
        self._documents = documents
        self._publisher = publisher
        self._name = f"signing_keys_{publisher.keys_of}"
        self._last: dict[str, Any] | None = None  # What was last written, or tried.
        self._written_at = float("-inf")
        self._has_told = False

    def is_due(self, fetched: KeySet, now: float) -> bool:
        """Return whether a set that was fetched is to be kept: a new one, or one an hour later."""
        return now - self._written_at >= KEEP_AGAIN or _essence(fetched) != self._last

    async def keep(self, fetched: KeySet, now: float) -> None:
        """Keep a set. A failure is harmless; the log has the first one of several."""
        self._written_at, self._last = now, _essence(fetched)
        try:
            document = self._pack(self._last, fetched.published_on)
            await self._documents.write(self._name, document)
        except Exception as exc:  # noqa: BLE001 - the set itself is good, whatever went wrong
            if not self._has_told:
                fields = {"reason": reason_of(exc)}
                audit.record("signing_keys_not_kept", fields, level=logging.WARNING)
            self._has_told = True
        else:
            self._has_told = False

    async def find(self) -> tuple[KeySet, float] | None:
        """Return the set that was kept and its age, if there is one that may be used."""
        try:
            kept = await self._documents.read(self._name)
            if kept is None:
                return None
            found, age = self._unpack(*kept)
        except Exception as exc:  # noqa: BLE001 - without keys, as before
            fields = {"reason": reason_of(exc)}
            audit.record("kept_signing_keys_refused", fields, level=logging.ERROR)
            return None
        told = {"keys": len(found.keys), "age_hours": round(age / 3600, 1)}
        audit.record("kept_signing_keys_used", told, level=logging.ERROR)
        return found, age

    def _pack(self, essence: dict[str, Any], published_on: int | None) -> bytes:
        if published_on is None:
            raise ValueError("an answer without Date")
        whole = asdict(self._publisher) | {"published_on": published_on} | essence
        return json.dumps(whole, separators=(",", ":")).encode()

    def _unpack(self, document: bytes, now: datetime) -> tuple[KeySet, float]:
        """Return the set in a document, and its age.

        Raises:
            ValueError: it is not one of this publisher's that may still be used.
        """
        kept = strict_json.loads_object(document)
        if {name: kept.get(name) for name in asdict(self._publisher)} != asdict(self._publisher):
            raise ValueError("kept for another publisher")
        published_on, metadata = kept.get("published_on"), kept.get("metadata")
        if type(published_on) is not int or not isinstance(metadata, dict):
            raise ValueError("not a kept set")
        age = now.timestamp() - published_on
        if not -AHEAD <= age <= MAX_AGE:
            raise ValueError("kept for longer than a day, or dated in the future")
        found = self._publisher.key_set(metadata, kept, published_on=None)
        keys = {key_id: replace(key, is_kept=True) for key_id, key in found.keys.items()}
        return replace(found, keys=keys), max(0.0, age)


def _essence(fetched: KeySet) -> dict[str, Any]:
    """Return what a set is judged by, in an order that does not depend on Entra's."""
    metadata = {name: fetched.metadata[name] for name in _METADATA if name in fetched.metadata}
    # Beside usable keys there may be others, whose id may be anything.
    by_id = {jwk["kid"]: jwk for jwk in fetched.document["keys"] if isinstance(jwk.get("kid"), str)}
    usable = [by_id[key_id] for key_id in sorted(fetched.keys)]
    keys = [{name: jwk[name] for name in _MEMBERS if name in jwk} for jwk in usable]
    return {"metadata": metadata, "keys": keys}
