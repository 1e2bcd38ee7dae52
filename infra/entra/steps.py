"""Decides what has to be added to the home tenant once the broker is registered there."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from infra.entra.directory import NAMES
from infra.entra.registration import (
    add_principal,
    add_resources,
    pre_authorize,
    register,
    requesting,
    scope_of,
)
from infra.entra.rest import Call, segment
from shared.endpoints import PUBLIC_CLOUD, TOKEN_EXCHANGE_AUDIENCES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from infra.entra.directory import Directory, Object
    from infra.entra.registration import Step, Wanted


def add_broker(directory: Directory, wanted: Wanted) -> Iterator[Call]:
    """Add the broker's own service principal, and those of its clients that are registered here."""
    names = {directory.broker_id: wanted.display_name}
    names |= {app_id: app["displayName"] for app_id, app in directory.clients.items()}
    for app_id, name in names.items():
        if app_id and app_id not in directory.principals:
            yield add_principal(app_id, name, waits=True)


def request_scope(directory: Directory, _wanted: Wanted) -> Iterator[Call]:
    """Let the clients that are registered here ask for the broker's scope.

    Without it, an administrator of another tenant who consents to a client does not consent to the
    broker with it.
    """
    application = directory.application or {}
    scope = scope_of(application)
    for app_id, client in directory.clients.items():
        before = client.get("requiredResourceAccess") or []
        after = requesting(before, application["appId"], [scope["id"]] if scope else [])
        if after != before:
            yield Call(
                f"let {client['displayName']} ask for the broker's scope",
                "PATCH",
                f"/v1.0/applications/{segment(client['id'])}",
                {"requiredResourceAccess": after},
                adds=f"client {app_id}",
                waits=True,
            )


def trust_identities(directory: Directory, wanted: Wanted) -> Iterator[Call]:
    """Let managed identities act as the broker, without a secret."""
    assert directory.application is not None  # noqa: S101 - the step before has made it
    application = segment(directory.application["id"])
    path = f"/v1.0/applications/{application}/federatedIdentityCredentials"
    for principal_id in wanted.identities:
        right = federated_credential(directory.tenant_id, principal_id, wanted.authority)
        same = [
            each
            for each in directory.credentials
            if right["name"] == each["name"] or right["subject"] == each["subject"]
        ]
        if not same:
            does = f"let the managed identity {principal_id} act as the broker"
            yield Call(does, "POST", path, right, adds="credential", waits=True)
        elif not any(is_right(each, right) for each in same):
            does = f"correct the federated credential {same[0]['name']}"
            changes = {name: value for name, value in right.items() if name != "name"}
            yield Call(
                does, "PATCH", f"{path}/{segment(same[0]['id'])}", changes, adds="credential"
            )


def federated_credential(tenant_id: str, principal_id: str, authority: str) -> Object:
    """Return the credential by which a managed identity acts as the broker.

    https://learn.microsoft.com/entra/workload-id/workload-identity-federation-config-app-trust-managed-identity
    """
    audiences, host = TOKEN_EXCHANGE_AUDIENCES, urlsplit(authority).hostname or ""
    return {
        "name": f"managed-identity-{principal_id}",
        "issuer": f"{authority}/{tenant_id}/v2.0",
        "subject": principal_id,
        "audiences": [audiences.get(host, audiences[PUBLIC_CLOUD])],
    }


def is_right(credential: Object, right: Object) -> bool:
    """Return whether a federated credential is as it has to be; its name does not matter."""
    return all(credential.get(name) == value for name, value in right.items() if name != "name")


def consent(directory: Directory, wanted: Wanted) -> Iterator[Call]:
    """Consent to the broker's permissions, for all users of the tenant."""
    if not wanted.consent or directory.broker is None:
        return
    for app_id, names in wanted.permissions.items():
        missing = [name for name in names if name not in directory.granted(app_id)]
        resource = directory.principals[app_id]
        grant = next(
            (
                each
                for each in directory.grants
                if each["resourceId"] == resource["id"] and each["consentType"] == "AllPrincipals"
            ),
            None,
        )
        does = f"consent to {', '.join(missing)} of {NAMES[app_id]} for all users"
        if missing and grant:
            scope = " ".join([*grant["scope"].split(), *missing])
            path = f"/v1.0/oauth2PermissionGrants/{segment(grant['id'])}"
            yield Call(does, "PATCH", path, {"scope": scope}, adds="grant")
        elif missing:
            body = {
                "clientId": directory.broker["id"],
                "consentType": "AllPrincipals",
                "resourceId": resource["id"],
                "scope": " ".join(missing),
            }
            path = "/v1.0/oauth2PermissionGrants"
            yield Call(does, "POST", path, body, adds="grant", waits=True)


# In this order: each refers to what the ones before have made.
STEPS: tuple[Step, ...] = (
    add_resources,
    register,
    pre_authorize,
    add_broker,
    request_scope,
    trust_identities,
    consent,
)
