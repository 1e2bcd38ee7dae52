"""Opens Microsoft Graph and the ACS resource, as the command line says."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from azure.core.pipeline.policies import BearerTokenCredentialPolicy

from infra.entra.assignments import API_VERSION
from infra.entra.directory import Graph
from infra.entra.rest import Service
from infra.entra.sign_in import ACS_SCOPE, access_key, credential, graph_of

if TYPE_CHECKING:
    from argparse import Namespace

    from azure.core.credentials import TokenCredential


class NotDoneError(Exception):
    """It cannot be done; the message says what to do."""


def say(text: str) -> None:
    """Tell the person who is waiting how far we are."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def show(text: str) -> None:
    """Write a result."""
    sys.stdout.write(f"{text}\n")


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
            NotDoneError: the connection string is not one.
        """
        text, endpoint = os.environ.get("ACS_CONNECTION_STRING"), self._arguments.acs_endpoint
        if text:
            try:
                endpoint, key = access_key(text)
            except ValueError as exc:
                raise NotDoneError(f"ACS_CONNECTION_STRING {exc}") from None
            return Service(endpoint, key, query=API_VERSION, say=say)
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
        if self._credential is None:
            self._credential = credential(
                self._arguments.sign_in,
                authority=self._arguments.authority_host,
                tenant=self._arguments.sign_in_tenant,
            )
        return self._credential
