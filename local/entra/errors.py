"""Entra's refusals, in its own words as far as they have been published.

https://learn.microsoft.com/entra/identity-platform/reference-error-codes
"""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from local.entra.objects import App, Tenant, User


class EntraError(Exception):
    """An error of Entra's: an OAuth error code, an AADSTS number and a message."""

    def __init__(self, error: str, number: int, message: str, **members: str) -> None:
        super().__init__(f"AADSTS{number}: {message}")
        self.error = error
        self.number = number
        self.members = members
        self.status = 401 if error == "invalid_client" else 400

    def document(self, url: str, correlation_id: str) -> dict[str, object]:
        """Return the error as Entra's token endpoint and metadata endpoints write it."""
        trace_id = str(uuid.uuid4())
        now = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%SZ}"
        tracing = f"Trace ID: {trace_id} Correlation ID: {correlation_id} Timestamp: {now}"
        return {
            "error": self.error,
            "error_description": f"{self} {tracing}",
            "error_codes": [self.number],
            "timestamp": now,
            "trace_id": trace_id,
            "correlation_id": correlation_id,
            "error_uri": f"{url}/error?code={self.number}",
            **self.members,
        }

    def redirected(self) -> dict[str, str]:
        """Return the error as the parameters of a redirect to the app."""
        error = {"consent_required": "interaction_required"}.get(self._reason, self.error)
        claims = {"claims": self.members["claims"]} if "claims" in self.members else {}
        return {"error": error, "error_description": str(self), **claims}

    @property
    def _reason(self) -> str:
        return self.members.get("suberror", "")


def invalid_grant(number: int, message: str, **members: str) -> EntraError:
    """Return the error for a grant that cannot be redeemed."""
    return EntraError("invalid_grant", number, message, **members)


def required(form: Mapping[str, str], name: str) -> str:
    """Return a parameter.

    Raises:
        EntraError: it is missing.
    """
    value = form.get(name)
    if not value:
        message = f"The request body must contain the following parameter: '{name}'."
        raise EntraError("invalid_request", 900144, message)
    return value


def no_consent(client: App) -> EntraError:
    """Return the error for permissions that nobody has consented to."""
    message = (
        f"The user or administrator has not consented to use the application with ID "
        f"'{client.client_id}' named '{client.name}'. Send an interactive authorization request "
        "for this user and resource."
    )
    return invalid_grant(65001, message, suberror="consent_required")


def no_preauthorization(client: App, resource: App) -> EntraError:
    """Return the error for an app of Microsoft's, to which nobody can consent."""
    message = (
        f"Consent between first party application '{client.client_id}' and first party resource "
        f"'{resource.client_id}' must be configured via preauthorization - applications owned and "
        "operated by Microsoft must get approval from the API owner before requesting tokens for "
        "that API."
    )
    return EntraError("invalid_request", 65002, message)


def no_such_client(client_id: str, tenant: Tenant | None) -> EntraError:
    """Return the error for a client that is not in the tenant."""
    directory = f" '{tenant.name}'" if tenant else ""
    message = (
        f"Application with identifier '{client_id}' was not found in the directory{directory}. "
        "This can happen if the application has not been installed by the administrator of the "
        "tenant or consented to by any user in the tenant. You may have sent your authentication "
        "request to the wrong tenant."
    )
    return EntraError("unauthorized_client", 700016, message)


def no_principal_of_client(client: App, tenant: Tenant) -> EntraError:
    """Return the error for an app that is registered in the tenant but not installed there."""
    message = (
        f"The client application {client.client_id} is missing service principal in the tenant "
        f"{tenant.tenant_id}. See instructions here: https://go.microsoft.com/fwlink/?linkid=2225119"
    )
    return EntraError("invalid_client", 7000229, message)


def no_such_resource(name: str, tenant: Tenant | None) -> EntraError:
    """Return the error for a resource that is not in the tenant."""
    where = f" the tenant named {tenant.name}" if tenant else " any tenant"
    message = (
        f"The resource principal named {name} was not found in{where}. This can happen if the "
        "application has not been installed by the administrator of the tenant or consented to by "
        "any user in the tenant. You might have sent your authentication request to the wrong "
        "tenant."
    )
    return EntraError("invalid_resource", 500011, message)


def no_principal_of_resource(resource: App, tenant: Tenant) -> EntraError:
    """Return the same error as a user gets it who signs in."""
    message = (
        f"The app is trying to access a service '{resource.client_id}'({resource.name}) that your "
        f"organization '{tenant.tenant_id}' lacks a service principal for. Contact your IT Admin "
        "to review the configuration of your service subscriptions or consent to the application "
        "in order to create the required service principal."
    )
    return EntraError("invalid_client", 650052, message)


def not_assigned(resource: App, user: User) -> EntraError:
    """Return the error for a user whom the tenant has not assigned to the resource."""
    message = (
        f"Your administrator has configured the application {resource.name} "
        f"('{resource.client_id}') to block users unless they are specifically granted ('assigned')"
        f" access to the application. The signed in user '{user.user_name}' is blocked because they"
        " are not a direct member of a group with access, nor had access directly assigned by an"
        " administrator. Please contact your administrator to assign access to this application."
    )
    return invalid_grant(50105, message)


def disabled() -> EntraError:
    """Return the error for a user whose account is disabled."""
    return invalid_grant(50057, "The user account is disabled.")


def step_up(resource: App, wanted: Mapping[str, object]) -> EntraError:
    """Return the error for a user who has to sign in with a second factor first.

    Args:
        resource: what the user wants a token for.
        wanted: the members of the claims request that a new sign-in has to answer.
    """
    message = (
        "Due to a configuration change made by your administrator, or because you moved to a new "
        "location, you must use multi-factor authentication to access "
        f"'{resource.client_id}'."
    )
    claims = json.dumps({"access_token": wanted}, separators=(",", ":"))
    return EntraError(
        "interaction_required", 50076, message, suberror="basic_action", claims=claims
    )


def of_policy(policy: str) -> dict[str, object]:
    """Return the claims request for what a conditional access policy wants."""
    return {"capolids": {"essential": True, "values": [policy]}}
