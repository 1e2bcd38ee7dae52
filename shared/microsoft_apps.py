"""Tells which audiences and app ids are of Microsoft's own services.

A broker that took tokens for Microsoft Graph would serve every app that was ever given one: the
confused deputy. So those audiences are refused in the settings. No list of them is complete; this
one has the hosts that Microsoft's services are under, and the apps that people call most.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from shared.identifiers import CONSUMERS

# Audiences are under these in the public, the United States government's and China's clouds.
# https://learn.microsoft.com/entra/identity-platform/authentication-national-cloud
HOSTS = (
    "microsoft.com",
    "microsoft.us",
    "microsoftonline.com",
    "microsoftonline.us",
    "microsoftonline.cn",
    "azure.com",
    "azure.net",
    "azure.us",
    "azure.cn",
    "windows.net",
    "windows.com",
    "windowsazure.com",
    "windowsazure.us",
    "windowsazure.cn",
    "chinacloudapi.cn",
    "usgovcloudapi.net",
    "azuresynapse.net",
    "azuredatabricks.net",
    "api.azureml.ms",
    "azconfig.io",
    "loganalytics.io",
    "loganalytics.us",
    "applicationinsights.io",
    "applicationinsights.us",
    "botframework.com",
    "botframework.us",
    "powerplatform.com",
    "cloud.microsoft",
    "microsoft365.com",
    "onenote.com",
    "office.com",
    "office.net",
    "office365.com",
    "office365.us",
    "office.us",
    "outlook.com",
    "live.com",
    "skype.com",
    "skypeforbusiness.com",
    "sharepoint.com",
    "sharepoint.us",
    "sharepoint.cn",
    "svc.ms",
    "visualstudio.com",
    "dynamics.com",
    "dynamics.us",
    "dynamics.cn",
    "powerbi.com",
    "powerapps.com",
    "yammer.com",
)
# Customers choose the names under these, of virtual machines.
CUSTOMERS = ("cloudapp.azure.com", "cloudapp.usgovcloudapi.net", "cloudapp.chinacloudapi.cn")
# Federated credentials: tokens for these prove that an app is itself.
# https://learn.microsoft.com/entra/workload-id/workload-identity-federation-config-app-trust-managed-identity
TOKEN_EXCHANGE = re.compile(r"api://azureadtokenexchange[a-z]*")
# Microsoft Graph, Azure AD Graph, Exchange, SharePoint, Skype, Power BI, Dynamics and others.
_NUMBERED = re.compile(r"0000[0-9a-f]{4}-0000-(0000-c000|0ff1-ce00)-000000000000")
# https://learn.microsoft.com/troubleshoot/entra/entra-id/governance/verify-first-party-apps-sign-in
APPS = frozenset(
    {
        "797f4846-ba00-4fd7-ba43-dac1f8f63013",  # Azure Resource Manager
        "cfa8b339-82a2-471a-a3c9-0fc0be7a4093",  # Azure Key Vault
        "e406a681-f3d4-42a8-90b6-c2b029497af1",  # Azure Storage
        "022907d3-0f1b-48f7-badc-1ba6abab6d66",  # Azure SQL Database
        "ca7f3f0b-7d91-482c-8e09-c5d840d0eac5",  # Log Analytics API
        "499b84ac-1321-427f-aa17-267ca6975798",  # Azure DevOps
        # https://learn.microsoft.com/azure/databricks/dev-tools/service-prin-aad-token
        "2ff814a6-3304-4ab8-85cb-cd0e6f879c1d",  # Azure Databricks
        # https://azure.github.io/kubelogin/concepts/aks.html
        "6dae42f8-4368-4678-94ff-3960e28e3630",  # Azure Kubernetes Service
        # https://learn.microsoft.com/power-platform/admin/programmability-authentication-v2
        "8578e004-a5c6-46e7-913e-12f58912df43",  # Power Platform API
        "fb60f99c-7a34-4190-8149-302f77469936",  # Entra token exchange
        "c5393580-f805-4401-95e8-94b7a6ef2fc2",  # Office 365 Management APIs
        "cc15fd57-2c6c-4117-a88c-83b1d56b4bbe",  # Microsoft Teams Services
        "1fec8e78-bce4-4aaf-ab1b-5451cc387264",  # Microsoft Teams
        "5e3ce6c0-2b1f-4285-8d4b-75ee78787346",  # Microsoft Teams Web Client
        "632ec9eb-fad7-4cbd-993a-e72973ba2acc",  # Azure Communication Services
        "2a04943b-b6a7-4f65-8786-2bb6131b59f6",  # Azure Communication Services Clients
        "1fd5118e-2576-4263-8130-9503064c837a",  # Azure Communication Services, for Teams users
        "04b07795-8ddb-461a-bbee-02f9e1bf7b46",  # Azure CLI
        "1950a258-227b-4e31-a9cf-717495945fc2",  # Azure PowerShell
        CONSUMERS,  # Not an app: the tenant of personal accounts
    }
)
_GUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def is_microsofts(audience: str) -> bool:
    """Return whether an audience or a client id is of a service of Microsoft's own."""
    text = audience.strip().lower()
    if TOKEN_EXCHANGE.fullmatch(text.rstrip("/")):
        return True
    ids = _GUID.findall(text)
    return any(each in APPS or _NUMBERED.fullmatch(each) for each in ids) or any(
        _is_under(host, HOSTS) and not _is_under(host, CUSTOMERS) for host in _hosts(text)
    )


def _hosts(text: str) -> list[str]:
    """Return the host of a URL, or what may be one in `urn:app:host` and `id/host@tenant`."""
    if "//" not in text:
        return re.split(r"[/:@]", text)
    try:
        return [(urlsplit(text).hostname or "").rstrip(".")]
    except ValueError:
        return []


def _is_under(host: str, domains: tuple[str, ...]) -> bool:
    return any(host == domain or host.endswith(f".{domain}") for domain in domains)
