"""What a directory allows those who ask for tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from local.entra import errors
from local.entra.errors import EntraError

if TYPE_CHECKING:
    from local.entra.objects import App, Tenant, User
    from local.entra.requests import Wanted
    from local.entra.state import Directory


def permitted(
    directory: Directory, client: App, wanted: Wanted, user: User, *, strong: bool
) -> tuple[str, ...]:
    """Return the permissions that a token for a user has.

    Raises:
        EntraError: the directory does not allow it, or wants something of the user first.
    """
    resource = wanted.resource
    if user.object_id in directory.disabled:
        raise errors.disabled()
    check_installed(directory, client, wanted, user.tenant)
    if not directory.may_enter(resource, user):
        raise errors.not_assigned(resource, user)
    granted = directory.granted(client, resource, user)
    scopes = granted if wanted.by_default else wanted.scopes
    if not scopes or not set(granted).issuperset(scopes):
        if client.tenant is resource.tenant is None:
            raise errors.no_preauthorization(client, resource)
        raise errors.no_consent(client)
    policy = directory.policy_for(resource, user)
    if policy and not strong:
        raise errors.step_up(resource, errors.of_policy(policy))
    return granted  # All of them, however few were asked for.


def check_installed(directory: Directory, client: App, wanted: Wanted, tenant: Tenant) -> None:
    """Check that both ends have an enabled service principal in the tenant.

    Raises:
        EntraError: one of them has not.
    """
    own = directory.principal(client, tenant)
    if own is None and client.tenant == tenant:
        raise errors.no_principal_of_client(client, tenant)
    if own is None:
        raise errors.no_such_client(client.client_id, tenant)
    principal = directory.principal(wanted.resource, tenant)
    if principal is None:
        raise errors.no_such_resource(wanted.audience, tenant)
    for each, app in ((own, client), (principal, wanted.resource)):
        if not each.enabled:
            message = f"Application '{app.client_id}'({app.name}) is disabled."
            raise EntraError("unauthorized_client", 7000112, message)
