"""Reads the URLs and connection strings in the settings, strictly.

Each function takes the text of a setting, and raises a ValueError that says what is wrong with it.
No message quotes the text, which may hold an access key.
"""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from shared.identifiers import GUID

if TYPE_CHECKING:
    from urllib.parse import SplitResult

# Entra's v1 issuer, by authority host.
# https://learn.microsoft.com/entra/identity-platform/authentication-national-cloud
PUBLIC_CLOUD = "login.microsoftonline.com"
V1_ISSUERS = {
    PUBLIC_CLOUD: "https://sts.windows.net",
    "login.microsoftonline.us": "https://sts.windows.net",
    "login.partner.microsoftonline.cn": "https://sts.chinacloudapi.cn",
}
# Each external tenant (Microsoft Entra External ID) has a host of its own. It is named by the
# tenant's id here, as in the issuer of the tenant's tokens; the metadata at the host with the
# tenant's own name has that issuer, too. https://github.com/AzureAD/microsoft-authentication-library-for-js/pull/8595
EXTERNAL_ID_SUFFIX = ".ciamlogin.com"
# Microsoft Graph, by authority host. The Department of Defense shares the second authority, but has
# a Graph of its own, which is not asked.
# https://learn.microsoft.com/graph/deployments
GRAPH_HOSTS = {
    PUBLIC_CLOUD: "graph.microsoft.com",
    "login.microsoftonline.us": "graph.microsoft.us",
    "login.partner.microsoftonline.cn": "microsoftgraph.chinacloudapi.cn",
}
# ACS's app for Teams users, by authority host: https://github.com/Azure/azure-sdk-for-js,
# sdk/communication/communication-common, names both.
TEAMS_RESOURCES = {
    PUBLIC_CLOUD: "https://auth.msft.communication.azure.com",
    "login.microsoftonline.us": "https://auth.msft.communication.azure.us",
}
# The cloud in the id of a Teams user. That of the Department of Defense, `dod`, has the second
# authority, too, and cannot be told apart by it.
TEAMS_CLOUDS = {PUBLIC_CLOUD: "orgid", "login.microsoftonline.us": "gcch"}
# The audience of assertions that a registration trusts, by authority host.
# https://learn.microsoft.com/entra/workload-id/workload-identity-federation-config-app-trust-managed-identity
TOKEN_EXCHANGE_AUDIENCES = {
    PUBLIC_CLOUD: "api://AzureADTokenExchange",
    "login.microsoftonline.us": "api://AzureADTokenExchangeUSGov",
    "login.partner.microsoftonline.cn": "api://AzureADTokenExchangeChina",
}
ACS_HOST = r"([a-z0-9-]+\.)+communication\.azure\.(com|us)"
STORAGE_HOST = (
    r"[a-z0-9]{{3,24}}\.(z\d+\.)?{service}(\.storage\.azure\.net"
    r"|\.core\.(windows\.net|usgovcloudapi\.net|chinacloudapi\.cn))"
)
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})


def entra_authority(text: str) -> str:
    """Return the origin of an Entra or loopback host, without a trailing slash."""
    host, origin = _origin(text)
    if host.endswith(EXTERNAL_ID_SUFFIX) and external_tenant(origin) is None:
        raise ValueError(f"does not name the tenant by its id: https://<id>{EXTERNAL_ID_SUFFIX}")
    if host not in LOOPBACK_HOSTS and host not in V1_ISSUERS and not external_tenant(origin):
        hosts = ", ".join([*V1_ISSUERS, f"<tenant id>{EXTERNAL_ID_SUFFIX}"])
        raise ValueError(f"is not an Entra host: {hosts}")
    return origin


def external_tenant(authority: str) -> str | None:
    """Return the tenant that an External ID authority belongs to; None for other authorities."""
    name = authority.removeprefix("https://").removesuffix(EXTERNAL_ID_SUFFIX)
    is_external = authority == f"https://{name}{EXTERNAL_ID_SUFFIX}"
    return name if is_external and GUID.fullmatch(name) else None


def acs_endpoint(text: str) -> str:
    """Return the endpoint of an ACS resource that a managed identity opens."""
    origin = _acs_origin(text)
    if not origin.startswith("https:"):
        raise ValueError("is not https, which a managed identity needs")
    return origin


def acs_connection_endpoint(text: str) -> str:
    """Return the endpoint in the connection string of an ACS resource."""
    return _acs_origin(_fields(text).get("endpoint", ""))


def acs_connection_key(text: str) -> str:
    """Return the access key in the connection string of an ACS resource."""
    return _base64(_fields(text).get("accesskey", ""), "accesskey")


def table_endpoint(text: str) -> str:
    """Return the Table endpoint of a storage account that a managed identity opens."""
    return _storage_endpoint(text, "table")


def blob_endpoint(text: str) -> str:
    """Return the Blob endpoint of a storage account that a managed identity opens."""
    return _storage_endpoint(text, "blob")


def table_connection_string(text: str) -> str:
    """Return the connection string of a storage account, as the SDK takes it for tables."""
    return _storage_connection_string(text, "table")


def blob_connection_string(text: str) -> str:
    """Return the connection string of a storage account, as the SDK takes it for blobs."""
    return _storage_connection_string(text, "blob")


def _storage_endpoint(text: str, service: str) -> str:
    parts = _split(text)
    if parts.scheme != "https":
        raise ValueError("is not https, which a managed identity needs")
    if parts.hostname in LOOPBACK_HOSTS:
        return text.rstrip("/")
    if not _is_storage_host(_origin(text)[0], service):
        raise ValueError(
            f"is not a {service.title()} endpoint (https://*.{service}.core.windows.net)"
        )
    return text.rstrip("/")


def _storage_connection_string(text: str, service: str) -> str:
    if text.lower().removesuffix(";") == "usedevelopmentstorage=true":
        return "UseDevelopmentStorage=true"  # The SDK takes it without a semicolon only.
    fields = _fields(text)
    _base64(fields.get("accountkey", ""), "AccountKey")
    account = fields.get("accountname", "")
    if not re.fullmatch(r"[a-z0-9]{3,24}", account):
        raise ValueError("has no AccountName= of 3 to 24 lower-case letters and digits")
    if "usedevelopmentstorage" in fields:  # The SDKs then ignore the account, or do not.
        raise ValueError("has UseDevelopmentStorage= next to an account")
    if f"{service}secondaryendpoint" in fields and f"{service}endpoint" not in fields:
        raise ValueError(f"has {service.title()}SecondaryEndpoint= alone")
    _check_storage_endpoint(fields, account, service)
    return text


def _check_storage_endpoint(fields: dict[str, str], account: str, service: str) -> None:
    """Refuse the fields of a connection string unless their endpoint is that of the account."""
    suffix = fields.get("endpointsuffix", "core.windows.net")
    endpoint = _split(
        fields.get(f"{service}endpoint", f"https://{account}.{service}.{suffix}").rstrip("/")
    )
    if endpoint.scheme not in {"https", "http"} or endpoint.query or "@" in endpoint.netloc:
        raise ValueError("has an endpoint that is not a URL with only a scheme, a host and a path")
    if endpoint.hostname in LOOPBACK_HOSTS:
        return
    if {endpoint.scheme, fields.get("defaultendpointsprotocol", "https")} != {"https"}:
        raise ValueError("is not https")
    if not _is_storage_host(endpoint.netloc, service) or endpoint.path:
        raise ValueError("is not the connection string of a storage account")
    if not endpoint.netloc.startswith(f"{account}."):
        raise ValueError("has the endpoint of an account other than AccountName=")


def _is_storage_host(host: str, service: str) -> bool:
    return bool(re.fullmatch(STORAGE_HOST.format(service=service), host))


def _acs_origin(text: str) -> str:
    host, origin = _origin(text)
    if host not in LOOPBACK_HOSTS and not re.fullmatch(ACS_HOST, host):
        raise ValueError("is not the endpoint of an ACS resource (*.communication.azure.com)")
    return origin


def _origin(text: str) -> tuple[str, str]:
    """Return the host and the origin of a URL that has no more than an origin."""
    parts = _split(text.rstrip("/"))
    host = parts.hostname or ""
    bare = f"{parts.scheme}://{parts.netloc}" == text.rstrip("/") and "@" not in parts.netloc
    if not bare or parts.scheme not in {"https", "http"} or not host:
        raise ValueError("is not a URL with only a scheme and a host")
    if parts.netloc != parts.netloc.lower():
        raise ValueError("is not a URL with its host in lower case")
    if host not in LOOPBACK_HOSTS and (parts.scheme != "https" or parts.netloc != host):
        raise ValueError("is not https:// and a host without a port")
    return host, text.rstrip("/")


def _split(text: str) -> SplitResult:
    try:
        parts = urlsplit(text)
        _ = parts.port  # Raises if it is not a port.
    except ValueError:  # Its message may quote a part of the connection string.
        raise ValueError("is not a URL") from None
    # `urlsplit` drops line breaks without a word; what goes on to the SDK still has them.
    if not re.fullmatch(r"[!-~]+", text):
        raise ValueError("is not a URL")
    return parts


def _fields(text: str) -> dict[str, str]:
    """Return the fields of a connection string, by name in lower case; no value is empty."""
    parts = text.removesuffix(";").split(";")
    well_formed = all(re.fullmatch(r"[A-Za-z0-9]+=[!-~]+", part) for part in parts)
    pairs = [part.partition("=") for part in parts]
    fields = {name.lower(): value for name, _, value in pairs}
    if len(fields) != len(parts) or not well_formed:
        raise ValueError("is not a connection string of the form name=value;name=value")
    return fields


def _base64(text: str, name: str) -> str:
    try:
        base64.b64decode(text or "-", validate=True)
    except ValueError:
        raise ValueError(f"has no {name}= in base64") from None
    return text
