"""`/applications/{id}/federatedIdentityCredentials`.

https://learn.microsoft.com/graph/api/resources/federatedidentitycredential
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from local.entra.assertions import issuer_of
from local.entra.graph.applications import READ, WRITE, find
from local.entra.graph.calls import nothing
from local.entra.graph.errors import bad_request, conflict, not_found
from local.entra.objects import FederatedCredential

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aiohttp import web

    from local.entra.graph.calls import Call
    from local.entra.objects import App

MOST = 20
KIND = "applications/federatedIdentityCredentials"
PATH = "applications/{id}/federatedIdentityCredentials"


def _document(call: Call, app: App, credential: FederatedCredential) -> dict[str, Any]:
    return {
        "id": credential.credential_id,
        "name": credential.name,
        "issuer": issuer_of(call.entra, app, credential),
        "subject": credential.subject,
        "description": credential.description,
        "audiences": list(credential.audiences),
    }


def _list(call: Call) -> web.Response:
    app = find(call)
    return call.many(KIND, [_document(call, app, each) for each in app.trusts])


def _get(call: Call) -> web.Response:
    app = find(call)
    return call.one(KIND, _document(call, app, _credential(call, app)))


def _create(call: Call) -> web.Response:
    app, members = find(call), call.members()
    made = _changed(call, FederatedCredential(name=call.text(members, "name"), subject=""), members)
    if len(app.trusts) >= MOST:
        raise bad_request("Too many FederatedIdentityCredentials.")
    _store(call, app, [*app.trusts, made])
    return call.one(KIND, _document(call, app, made), status=201)


def _change(call: Call) -> web.Response:
    app, members = find(call), call.members()
    old = _credential(call, app)
    if members.get("name", old.name) != old.name:
        raise bad_request("Property 'name' is read-only.")
    new = _changed(call, old, {**_document(call, app, old), **members})
    _store(call, app, [new if each is old else each for each in app.trusts])
    return nothing()


def _delete(call: Call) -> web.Response:
    app = find(call)
    old = _credential(call, app)
    _store(call, app, [each for each in app.trusts if each is not old])
    return nothing()


def _credential(call: Call, app: App) -> FederatedCredential:
    wanted = call.keys["credential"]
    for each in app.trusts:
        if wanted in {each.credential_id, each.name}:
            return each
    raise not_found(wanted)


def _changed(
    call: Call, credential: FederatedCredential, members: dict[str, Any]
) -> FederatedCredential:
    audiences = members.get("audiences")
    if not isinstance(audiences, list) or len(audiences) != 1:
        raise bad_request("FederatedIdentityCredential must have exactly one audience.")
    return replace(
        credential,
        issuer=call.text(members, "issuer"),
        subject=call.text(members, "subject"),
        audiences=tuple(audiences),
        description=members.get("description"),
    )


def _store(call: Call, app: App, credentials: Iterable[FederatedCredential]) -> None:
    trusts = tuple(credentials)
    pairs = {(issuer_of(call.entra, app, each), each.subject) for each in trusts}
    if len({each.name for each in trusts}) < len(trusts) or len(pairs) < len(trusts):
        message = "FederatedIdentityCredential with the same name, or issuer and subject, exists."
        raise conflict(message)
    call.entra.directory.apps[app.client_id] = replace(app, trusts=trusts)


OPERATIONS = [
    ("GET", PATH, READ, _list),
    ("POST", PATH, WRITE, _create),
    ("GET", f"{PATH}/{{credential}}", READ, _get),
    ("PATCH", f"{PATH}/{{credential}}", WRITE, _change),
    ("DELETE", f"{PATH}/{{credential}}", WRITE, _delete),
]
