"""Reads hints from the payload of a token whose signature cannot be verified yet.

They only say whether asking Entra for keys is worthwhile. They come from strangers, so they are
looked for with patterns that take linear time, and nothing is parsed. What is not there exactly
once, in the form that Entra writes, counts as not there.
"""

from __future__ import annotations

import re

from shared.identifiers import Person

_GUID = rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_END = rb"\s{0,8}[,}]"


def _member(name: bytes, value: bytes) -> tuple[bytes, re.Pattern[bytes]]:
    quoted = b'"%b"' % name
    return quoted, re.compile(rb"%b\s{0,8}:\s{0,8}(%b)%b" % (quoted, value, _END))


# Twelve digits are enough for some thirty thousand years.
_ISSUED_AT = _member(b"iat", rb"[1-9][0-9]{0,11}")
_TENANT_ID = _member(b"tid", rb'"%b"' % _GUID)
_OBJECT_ID = _member(b"oid", rb'"%b"' % _GUID)


def issued_at(payload: bytes) -> int | None:
    """Return the time in `iat`, if the payload has exactly one."""
    found = _find(payload, _ISSUED_AT)
    return None if found is None else int(found)


def person(payload: bytes) -> Person | None:
    """Return the person in `tid` and `oid`, if the payload has exactly one of each."""
    tenant_id, object_id = _find(payload, _TENANT_ID), _find(payload, _OBJECT_ID)
    if tenant_id is None or object_id is None:
        return None
    return Person(tenant_id.strip('"'), object_id.strip('"'))


def _find(payload: bytes, member: tuple[bytes, re.Pattern[bytes]]) -> str | None:
    # Inside a text, JSON writes a quotation mark with a backslash, so this is a name or a whole
    # text. A second one, wherever it is, means that we cannot tell.
    quoted, pattern = member
    if payload.count(quoted) != 1:
        return None
    match = pattern.search(payload)
    return match[1].decode() if match else None
