"""The identifiers of people, app roles and ACS identities, and the form that they have."""

from __future__ import annotations

import re
from typing import NamedTuple, TypeGuard

GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
CONSUMERS = "9188040d-6c67-4c5b-b112-36a304b66dad"  # The tenant of personal Microsoft accounts.
# The value of an app role: https://learn.microsoft.com/graph/api/resources/approle
APP_ROLE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,120}")
# In the public cloud and in the two clouds of the United States government.
ACS_ID = re.compile(r"8:(acs|gcch-acs|dod-acs):[0-9a-fA-F-]{36}_[0-9a-zA-Z-]{1,64}")


class Person(NamedTuple):
    """A person, by `tid` and `oid`. Names, mail addresses and UPNs change hands; these never do.

    https://learn.microsoft.com/entra/identity-platform/claims-validation#validate-the-subject
    """

    tenant_id: str
    object_id: str


def is_guid(value: object) -> TypeGuard[str]:
    """Return whether a value from JSON is a GUID in Entra's form."""
    return isinstance(value, str) and GUID.fullmatch(value) is not None


def resource_of(acs_id: str) -> str:
    """Return the immutable id of the ACS resource that an identity belongs to."""
    return acs_id.split(":")[2].partition("_")[0].lower()
