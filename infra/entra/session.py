"""Opens Microsoft Graph and the ACS resource, as the command line says."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from azure.core.pipeline.policies import BearerTokenCredentialPolicy

from infra.entra.assignments import API_VERSION
from infra.entra.directory import Graph
from infra.entra.printable import printable
from infra.entra.rest import Service
from infra.entra.sign_in import ACS_SCOPE, access_key, credential, graph_of
from shared.endpoints import acs_endpoint

if TYPE_CHECKING:
    from argparse import Namespace

    from azure.core.credentials import TokenCredential

LINE_BREAK = "\n"


class NotDoneError(Exception):
    """It cannot be done; the message says what to do."""


def say(text: str) -> None:
    """Tell the person who is waiting how far we are, in one line."""
    sys.stderr.write(f"{printable(text)}\n")
    sys.stderr.flush()


def show(text: str) -> None:
    """Write a result; what others have written must be `printable` where it enters the text.

    Only so are its line breaks told from those of the layout, which stay.
    """
    sys.stdout.write(f"{printable(text, keep=LINE_BREAK)}\n")


def _endpoint() -> str | None:
    """Return the ACS resource that the variable names."""
    text = os.environ.get("ACS_ENDPOINT")
    try:
        return acs_endpoint(text) if text else None
    except ValueError as exc:
        raise NotDoneError(f"ACS_ENDPOINT {exc}") from None


class Session:
    """The services that a command uses, opened on first use."""

    def __init__(self, arguments: Namespace) -> None:
        self._arguments = arguments
        self._credential: TokenCredential | None = None

    def graph(self) -> Graph:
        """Return Microsoft Graph, for the tenant that is signed in to."""
        url, scope = graph_of(self._arguments.authority_host)
        policy = BearerTokenCredentialPolicy(self._signed_in(), scope)
        return Graph(Service(url, policy, say=say))

    def acs(self) -> Service | None:
        """Return the ACS resource, None if none is named.

        Raises:
            NotDoneError: a variable is not what it has to be, or they name two resources.
        """
        endpoint = self._arguments.acs_endpoint or _endpoint()
        if text := os.environ.get("ACS_CONNECTION_STRING"):
            try:
                named, key = access_key(text)
            except ValueError as exc:
                raise NotDoneError(f"ACS_CONNECTION_STRING {exc}") from None
            if endpoint not in {None, named}:
                raise NotDoneError(
                    f"ACS_CONNECTION_STRING is of {named}, but the ACS resource is to be"
                    f" {endpoint}: unset the variable, or name the same resource"
                )
            return Service(named, key, query=API_VERSION, say=say)
        if not endpoint:
            return None
        policy = BearerTokenCredentialPolicy(self._signed_in(), ACS_SCOPE)
        return Service(endpoint, policy, query=API_VERSION, say=say)

    def acs_resource(self) -> Service:
        """Return the ACS resource.

        Raises:
            NotDoneError: none is named.
        """
        acs = self.acs()
        if acs is None:
            raise NotDoneError("name the ACS resource: --acs-endpoint https://...")
        return acs

    def _signed_in(self) -> TokenCredential:
        arguments = self._arguments
        if arguments.sign_in_tenant and arguments.sign_in in {"environment", "default"}:
            raise NotDoneError(
                f"--sign-in {arguments.sign_in} takes no --sign-in-tenant: its tenant is that of"
                " the variable AZURE_TENANT_ID, or of the account that it finds"
            )
        if self._credential is None:
            self._credential = credential(
                self._arguments.sign_in,
                authority=self._arguments.authority_host,
                tenant=self._arguments.sign_in_tenant,
            )
        return self._credential
