"""Signs administrators in, with the credentials of azure-identity."""

from __future__ import annotations

import base64
import hashlib
import hmac
from email.utils import formatdate
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from azure.core.pipeline.policies import SansIOHTTPPolicy
from azure.core.rest import HttpRequest, HttpResponse
from azure.identity import (
    AzureCliCredential,
    DefaultAzureCredential,
    DeviceCodeCredential,
    EnvironmentCredential,
)

from shared.endpoints import (
    GRAPH_HOSTS,
    LOOPBACK_HOSTS,
    PUBLIC_CLOUD,
    acs_connection_endpoint,
    acs_connection_key,
)

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential
    from azure.core.pipeline import PipelineRequest

SIGN_INS = {
    "cli": "the account of `az login`",
    "device-code": "a code that you type into a browser",
    "environment": "a service principal: AZURE_TENANT_ID, AZURE_CLIENT_ID, AZURE_CLIENT_SECRET",
    "default": "whatever DefaultAzureCredential finds",
}
CLI_SECONDS = 60
# With two slashes, as Microsoft's SDKs ask for it.
ACS_SCOPE = "https://communication.azure.com//.default"


def credential(name: str, *, authority: str, tenant: str | None) -> TokenCredential:
    """Return a credential by the name of a sign-in.

    Args:
        name: a key of `SIGN_INS`.
        authority: Entra's origin.
        tenant: the tenant to sign in to; None: that of the account.
    """
    # Instance discovery asks the public cloud whether it knows the host.
    local = urlsplit(authority).hostname in LOOPBACK_HOSTS
    entra: dict[str, Any] = {"authority": authority, "disable_instance_discovery": local}
    if name == "cli":
        return AzureCliCredential(tenant_id=tenant or "", process_timeout=CLI_SECONDS)
    if name == "device-code":
        return DeviceCodeCredential(**entra, tenant_id=tenant or "organizations")
    if name == "environment":
        return EnvironmentCredential(**entra)
    return DefaultAzureCredential(**entra, process_timeout=CLI_SECONDS)


def graph_of(authority: str) -> tuple[str, str]:
    """Return the origin of Microsoft Graph, and the scope of tokens for it.

    The local stack serves Graph together with Entra, and knows it by the name of the public one.
    """
    host = urlsplit(authority).hostname or ""
    audience = f"https://{GRAPH_HOSTS.get(host, GRAPH_HOSTS[PUBLIC_CLOUD])}"
    return (audience if host in GRAPH_HOSTS else authority), f"{audience}/.default"


class AccessKey(SansIOHTTPPolicy[HttpRequest, HttpResponse]):
    """Signs requests to ACS with an access key.

    https://learn.microsoft.com/azure/communication-services/tutorials/hmac-header-tutorial
    """

    def __init__(self, key: str) -> None:
        self._key = base64.b64decode(key)

    def on_request(self, request: PipelineRequest[HttpRequest]) -> None:
        """Add the date, the hash of the body, and the signature of both."""
        sent = request.http_request
        url = urlsplit(sent.url)
        body = sent.content or b""
        body = body.encode() if isinstance(body, str) else body
        content_hash = base64.b64encode(hashlib.sha256(body).digest()).decode()
        date = formatdate(usegmt=True)
        target = f"{url.path}?{url.query}"
        text = f"{sent.method}\n{target}\n{date};{url.netloc};{content_hash}"
        signature = base64.b64encode(hmac.digest(self._key, text.encode(), "sha256")).decode()
        sent.headers["x-ms-date"] = date
        sent.headers["x-ms-content-sha256"] = content_hash
        sent.headers["Authorization"] = (
            f"HMAC-SHA256 SignedHeaders=x-ms-date;host;x-ms-content-sha256&Signature={signature}"
        )


def access_key(connection_string: str) -> tuple[str, AccessKey]:
    """Return the endpoint in a connection string of ACS, and the policy that signs.

    Raises:
        ValueError: it is not the connection string of an ACS resource.
    """
    endpoint = acs_connection_endpoint(connection_string)
    return endpoint, AccessKey(acs_connection_key(connection_string))
