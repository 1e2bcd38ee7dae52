"""Finds what somebody else may have put into the broker's registration. Pure functions.

The unique name is public. Where Entra lets users register apps, anybody in the tenant can take it
first, and what they have put there would stay, with the consent and the trust that is added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from infra.entra.registration import CONSENT_PAGE
from infra.entra.steps import federated_credential, is_right

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from infra.entra.directory import Directory, Object
    from infra.entra.registration import Wanted


@dataclass(frozen=True, slots=True)
class Item:
    """Something in a registration, and whether it can act as the broker or receive its answers."""

    says: str
    is_grave: bool


def unexpected(directory: Directory, wanted: Wanted) -> list[Item]:
    """Return what `setup` with these arguments would not have put into the registration.

    infra/entra.bicep writes the same redirect URI, and client apps of its own, which cannot be told
    from others; so these are not grave. A managed identity has to be named.
    """
    application = directory.application
    if application is None:
        return []
    grave = [
        *map(described, foreign_credentials(directory, wanted, strict=True)),
        *secrets(application),
        *(f"the redirect URI {uri}" for uri in foreign_redirects(application)),
    ]
    others = [f"the client app {each}" for each in _clients(application) - {*wanted.client_ids}]
    return [Item(each, is_grave=True) for each in grave] + [
        Item(each, is_grave=False) for each in sorted(others)
    ]


def foreign_credentials(
    directory: Directory, wanted: Wanted, *, strict: bool = False
) -> Iterator[Object]:
    """Yield the federated credentials that are not of the managed identities that were named.

    Unless any was named, or this is strict, those that look like ones of this tenant are taken for
    ours.
    """
    for each in directory.credentials:
        subject = str(each.get("subject"))
        right = federated_credential(directory.tenant_id, subject, wanted.authority)
        if wanted.identities or strict:
            is_ours = subject in wanted.identities
        else:
            is_ours = each.get("name") == right["name"]
        if not (is_ours and is_right(each, right)):
            yield each


def described(credential: Object) -> str:
    """Return which federated credential it is."""
    return (
        f"the federated credential {credential.get('name')} of the subject"
        f" {credential.get('subject')} of {credential.get('issuer')}"
    )


def secrets(application: Object) -> list[str]:
    """Return the secrets and certificates, which a broker has if it has no managed identity."""
    kinds = {"passwordCredentials": "secret", "keyCredentials": "certificate"}
    return [
        f"the {what} {each.get('displayName') or ''} ({each.get('keyId')})".replace("  ", " ")
        for name, what in kinds.items()
        for each in application.get(name) or []
    ]


def foreign_redirects(application: Object) -> list[str]:
    """Return the redirect URIs besides the one that the consent page needs."""
    platforms = [application.get(name) or {} for name in ("web", "spa", "publicClient")]
    return [
        str(uri)
        for platform in platforms
        for uri in platform.get("redirectUris") or []
        if uri != CONSENT_PAGE
    ]


def _clients(application: Object) -> set[str]:
    api = application.get("api") or {}
    authorized = [each["appId"] for each in api.get("preAuthorizedApplications") or []]
    return {*map(str, authorized), *map(str, api.get("knownClientApplications") or [])}


def report(application: Object, items: Iterable[Item], owners: Iterable[str]) -> Iterator[str]:
    """Yield the lines that show what was found, and whose registration it is."""
    yield (
        f"Warning: the registration {application.get('appId')} was here already, made on"
        f" {application.get('createdDateTime') or 'an unknown day'}. It has what was not asked for:"
    )
    yield from (f"  {each.says}" for each in items)
    yield from (f"  the owner {each}" for each in owners)
