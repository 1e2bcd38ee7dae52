"""What a verified token says about its caller beyond who it is, for the rules of a policy.

Only the token is read. If a person is in too many groups to list, Entra names a URL in their place;
it is never called. https://learn.microsoft.com/entra/identity-platform/access-token-claims-reference
"""

from __future__ import annotations

from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from shared.errors import InvalidTokenError

if TYPE_CHECKING:
    from collections.abc import Mapping

NO_CLAIMS: Mapping[str, Any] = MappingProxyType({})
# What a client says that can handle claims challenges, in any letters.
# https://learn.microsoft.com/entra/identity-platform/claims-challenge
HANDLES_CHALLENGES = "cp1"


class Attributes:
    """The attributes, each read from the claims when a rule first asks for it.

    Without a policy nothing asks. The claims have no other way out of here.

    Raises:
        InvalidTokenError: (each attribute) the claim does not have the form that Entra gives it.
    """

    def __init__(self, claims: Mapping[str, Any] = NO_CLAIMS) -> None:
        self._claims = claims

    @cached_property
    def roles(self) -> frozenset[str]:
        """The app roles of the person at this service."""
        return self._names("roles") or frozenset()

    @cached_property
    def groups(self) -> frozenset[str] | None:
        """The ids of the person's groups; None if they are too many for the token."""
        elsewhere = self._claims.get("_claim_names")
        is_elsewhere = isinstance(elsewhere, dict) and "groups" in elsewhere
        if is_elsewhere or self._claims.get("hasgroups"):
            return None
        return self._names("groups") or frozenset()

    @cached_property
    def contexts(self) -> frozenset[str]:
        """The authentication contexts that the sign-in satisfied, such as `c1`."""
        return self._names("acrs") or frozenset()

    @cached_property
    def methods(self) -> frozenset[str] | None:
        """The methods of the sign-in, such as `mfa`; None if the token does not say: v2 never does.

        https://learn.microsoft.com/entra/identity-platform/access-token-claims-reference
        """
        return self._names("amr")

    @cached_property
    def handles_challenges(self) -> bool:
        """Whether the client says that it can hand a claims challenge to Entra."""
        capabilities = self._claims.get("xms_cc")
        if isinstance(capabilities, str):
            capabilities = [capabilities]
        names = capabilities if isinstance(capabilities, list) else []
        return any(str(name).lower() == HANDLES_CHALLENGES for name in names)

    def _names(self, claim: str) -> frozenset[str] | None:
        names = self._claims.get(claim)
        if names is None:
            return None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InvalidTokenError(f"{claim} is not a list of names")
        return frozenset(names)
