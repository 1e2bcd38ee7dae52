"""Judges a tenant: is everything there that the broker needs? These functions are pure."""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING

from infra.entra.consent import consent_url, resource_of
from infra.entra.directory import ACS_CLIENTS_APP, ACS_TEAMS_APP, GRAPH_APP, NAMES
from infra.entra.findings import Finding
from infra.entra.permissions import NoPermissionError, permission_id
from infra.entra.registration import ADMIN_ROLE, CONSENT_PAGE, SCOPE, scope_of
from infra.entra.steps import federated_credential, is_right
from infra.entra.unexpected import described, foreign_credentials, foreign_redirects, secrets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from infra.entra.directory import Object
    from infra.entra.reading import Reading


def resources(reading: Reading) -> Iterator[Finding]:
    """Microsoft's apps are in the tenant."""
    for app_id in (ACS_CLIENTS_APP, ACS_TEAMS_APP):
        if app_id in reading.wanted.permissions and app_id not in reading.directory.principals:
            yield Finding(
                "acs-not-in-tenant",
                f"the tenant has no service principal of {NAMES[app_id]}, so Entra refuses tokens"
                " for it (AADSTS650052, AADSTS500011)",
                reading.command("setup") if reading.at_home else f"az ad sp create --id {app_id}",
            )


def enabled(reading: Reading) -> Iterator[Finding]:
    """No app that takes part is disabled in the tenant."""
    for app_id in (*reading.wanted.permissions, reading.broker_id, *reading.wanted.client_ids):
        principal = reading.directory.principals.get(app_id or "", {})
        if principal.get("accountEnabled") is False:
            name = NAMES.get(principal["appId"], str(principal.get("displayName", app_id)))
            says = f"{name} is disabled in this tenant (AADSTS7000112)"
            fix = f"az ad sp update --id {quote(str(app_id))} --set accountEnabled=true"
            yield Finding("app-disabled", says, fix)


def registration(reading: Reading) -> Iterator[Finding]:
    """The broker is registered with its scope, its role and its permissions."""
    application = reading.directory.application
    if application is None:
        name = reading.wanted.unique_name
        says = f"no broker is registered here (unique name {name})"
        fix = (
            "if this is not its home tenant, add --broker <client id of the broker>; if it is:"
            f" {reading.command('setup')}"
        )
        yield Finding("broker-not-registered", says, fix)
        return
    scope = scope_of(application)
    if scope is None or not scope.get("isEnabled"):
        says = f"the broker's registration has no scope {SCOPE}, or it is disabled"
        yield Finding("scope-missing", says, reading.command("setup"))
    roles = application.get("appRoles") or []
    if not any(role.get("value") == ADMIN_ROLE and role.get("isEnabled") for role in roles):
        says = f"the broker's registration has no app role {ADMIN_ROLE}, or it is disabled"
        yield Finding("role-missing", says, reading.command("setup"))
    for name in _not_requested(reading, application):
        says = f"the broker's registration does not ask for {name}, so nobody can consent to it"
        yield Finding("permission-not-requested", says, reading.command("setup"))


def _not_requested(reading: Reading, application: Object) -> Iterator[str]:
    requested = {
        (each["resourceAppId"], access["id"])
        for each in application.get("requiredResourceAccess") or []
        for access in each["resourceAccess"]
    }
    for app_id, names in reading.wanted.permissions.items():
        principal = reading.directory.principals.get(app_id)
        for name in names if principal else ():
            try:
                found = (app_id, permission_id(principal or {}, name)) in requested
            except NoPermissionError:
                found = False
            if not found:
                yield f"{name} of {NAMES[app_id]}"


def audience(reading: Reading) -> Iterator[Finding]:
    """Users of those tenants that have access can sign in."""
    elsewhere = {each.tenant_id for each in reading.assignments or ()} - {reading.tenant_id}
    apps = [reading.directory.application, *reading.directory.clients.values()]
    for app in apps if elsewhere else ():
        if app is not None and app.get("signInAudience") == "AzureADMyOrg":
            ours = app is reading.directory.application
            says = (
                f"users of {', '.join(sorted(elsewhere))} have access to the ACS resource, but"
                f" {app['displayName']} is registered for this tenant only (AADSTS50194)"
            )
            fix = (
                reading.command("setup", "--multitenant")
                if ours
                else f"az ad app update --id {quote(app['appId'])}"
                " --sign-in-audience AzureADMultipleOrgs"
            )
            yield Finding("single-tenant", says, fix)


def identities(reading: Reading) -> Iterator[Finding]:
    """A managed identity can act as the broker, without a secret."""
    for principal_id in reading.wanted.identities:
        yield from _identity(reading, principal_id)
    if not reading.wanted.identities:
        right = federated_credential(reading.tenant_id, "", reading.wanted.authority)
        if not any(_is_usual(each, right) for each in reading.directory.credentials):
            says = "no managed identity of this tenant can act as the broker"
            fix = reading.command("setup", "--identity", "<IDENTITY_PRINCIPAL_ID>")
            yield Finding("federated-credential-missing", says, fix)


def _identity(reading: Reading, principal_id: str) -> Iterator[Finding]:
    present = reading.directory.credentials
    right = federated_credential(reading.tenant_id, principal_id, reading.wanted.authority)
    if any(is_right(each, right) for each in present):
        return
    fix = reading.command("setup", "--identity", principal_id)
    near = next((each for each in present if _is_near(each, right)), None)
    if near is None:
        says = f"the managed identity {principal_id} cannot act as the broker (AADSTS700213)"
        yield Finding("federated-credential-missing", says, fix)
        return
    names = ("issuer", "subject", "audiences")
    wrong = {name: near[name] for name in names if near[name] != right[name]}
    details = "; ".join(f"{value} instead of {right[name]}" for name, value in wrong.items())
    says = f"the federated credential {near['name']} has the wrong {' and '.join(wrong)}: {details}"
    yield Finding("federated-credential-wrong", says, fix)


def _is_usual(credential: Object, right: Object) -> bool:
    """Return whether a credential is for some managed identity of the tenant."""
    return all(credential[name] == right[name] for name in ("issuer", "audiences"))


def _is_near(credential: Object, right: Object) -> bool:
    """Return whether a credential was meant for the same managed identity."""
    return bool(
        credential["name"] == right["name"]
        or str(credential["subject"]).lower() == right["subject"]
    )


def intruders(reading: Reading) -> Iterator[Finding]:
    """Nobody else can act as the broker, or is sent what Entra answers to it."""
    application = reading.directory.application or {}
    broker = quote(str(application.get("appId")))
    fix = (
        "if another environment of yours acts as the same broker, give its --identity, too;"
        f" otherwise: az ad app federated-credential delete --id {broker}"
        " --federated-credential-id"
    )
    for each in foreign_credentials(reading.directory, reading.wanted):
        if not _is_reported(each, reading):
            says = f"{described(each)} can act as the broker"
            yield Finding("unexpected-credential", says, f"{fix} {quote(str(each.get('id')))}")
    for what in secrets(application):
        says = f"the broker's registration has {what}: who knows it can act as the broker"
        fix = (
            "right if the broker has ENTRA_CLIENT_SECRET or ENTRA_CLIENT_CERTIFICATE; otherwise"
            " delete it under App registrations, Certificates & secrets"
        )
        yield Finding("unexpected-credential", says, fix, is_sure=False)
    for uri in foreign_redirects(application):
        says = f"the broker has the redirect URI {uri}, but signs nobody in"
        fix = "delete it under App registrations, Authentication, unless you know what it is for"
        yield Finding("unexpected-redirect", says, fix)


def _is_reported(credential: Object, reading: Reading) -> bool:
    """Return whether a credential is called wrong already, which `setup --identity` corrects."""
    present, wanted = reading.directory.credentials, reading.wanted
    rights = [
        federated_credential(reading.tenant_id, each, wanted.authority)
        for each in wanted.identities
    ]
    return any(
        _is_near(credential, right) and not any(is_right(each, right) for each in present)
        for right in rights
    )


def clients(reading: Reading) -> Iterator[Finding]:
    """The client apps may call the broker without another consent, and are in the tenant."""
    application = reading.directory.application
    authorized = ((application or {}).get("api") or {}).get("preAuthorizedApplications") or []
    scope_id = (scope_of(application or {}) or {}).get("id")
    known = {each["appId"] for each in authorized if scope_id in each["delegatedPermissionIds"]}
    for client_id in reading.wanted.client_ids:
        if application is not None and client_id not in known:
            says = (
                f"the client app {client_id} is not pre-authorized: each user has to consent to it"
            )
            fix = reading.command("setup", "--client-id", client_id)
            yield Finding("client-not-pre-authorized", says, fix)
        if client_id not in reading.directory.principals:
            says = f"the client app {client_id} is not in this tenant (AADSTS700016)"
            yield Finding("client-not-in-tenant", says, _add_client(reading, client_id))


def _add_client(reading: Reading, client_id: str) -> str:
    if client_id in reading.directory.clients:
        return reading.command("setup", "--client-id", client_id)
    if reading.at_home:
        return "the app's owner sends the link on which an administrator of this tenant consents"
    line = reading.command("consent-url", "--tenant", reading.tenant_id)
    return f"the broker's owner sends the links that this prints: {line}"


def consent(reading: Reading) -> Iterator[Finding]:
    """The broker is in the tenant, and somebody has consented to what it asks for."""
    broker_id = reading.broker_id
    if broker_id is None:
        return
    if broker_id not in reading.directory.principals:
        says = "the broker has no service principal in this tenant: nobody has consented to it"
        yield Finding("broker-not-in-tenant", says, _consent(reading, broker_id))
        return
    user_id = (reading.user or {}).get("id", "")
    for app_id, names in reading.wanted.permissions.items():
        granted = reading.directory.granted(app_id, user_id)
        missing = [name for name in names if name not in granted]
        if missing and app_id != GRAPH_APP:
            says = (
                f"nobody has consented that the broker uses {', '.join(missing)} of {NAMES[app_id]}"
                " (AADSTS65001; callers see 403 consent_required)"
            )
            yield Finding("consent-missing", says, _consent(reading, broker_id))


def _consent(reading: Reading, broker_id: str) -> str:
    if reading.at_home:
        return reading.command("setup", "--consent")
    authority = reading.wanted.authority
    link = consent_url(
        authority=authority,
        tenant=reading.tenant_id,
        client_id=broker_id,
        resource=resource_of(reading.wanted.permissions, authority),
        redirect_uri=CONSENT_PAGE,
    )
    return f"an administrator of this tenant opens {link}"
