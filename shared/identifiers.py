"""How people and identities are named, and the forms that those names have."""

from __future__ import annotations

import re
from typing import NamedTuple

GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# Of the public cloud and of the two for the United States' government.
ACS_ID = re.compile(r"8:(acs|gcch-acs|dod-acs):[0-9a-fA-F-]{36}_[0-9a-zA-Z-]{1,64}")


class Person(NamedTuple):
    """Who somebody is: `tid` and `oid`. Names, mail addresses and UPNs change hands; these never.

    https://learn.microsoft.com/entra/identity-platform/claims-validation#validate-the-subject
    """

    tenant_id: str
    object_id: str
