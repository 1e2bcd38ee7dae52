"""Audiences and app ids of Microsoft's own services, and those that only look like them."""

from __future__ import annotations

import pytest

from shared.microsoft_apps import is_microsofts
from shared.settings import Settings, SettingsError

GRAPH, ACS = "00000003-0000-0000-c000-000000000000", "632ec9eb-fad7-4cbd-993a-e72973ba2acc"
OURS = "0fa5c3d7-b218-4e69-9c40-7d1e8b6f52a3"


@pytest.mark.parametrize(
    "audience",
    [
        GRAPH,
        GRAPH.upper(),
        f"spn:{GRAPH}",
        f"api://{GRAPH}",
        "00000002-0000-0000-c000-000000000000",
        "00000002-0000-0ff1-ce00-000000000000",
        "00000003-0000-0ff1-ce00-000000000000/contoso.sharepoint.com@3e7a1c52",
        "797f4846-ba00-4fd7-ba43-dac1f8f63013",
        ACS,
        "https://graph.microsoft.com",
        "https://graph.microsoft.com/",
        "HTTPS://Graph.Microsoft.COM",
        "https://graph.microsoft.com./",
        "https://graph.microsoft.com:443",
        "https://x@graph.microsoft.com/",
        "https://graph.microsoft.us",
        "https://dod-graph.microsoft.us/",
        "https://microsoftgraph.chinacloudapi.cn",
        "https://graph.windows.net/",
        "https://management.azure.com/",
        "https://management.core.windows.net//",
        "https://management.usgovcloudapi.net",
        "https://management.chinacloudapi.cn/",
        "https://vault.azure.net",
        "https://contoso.vault.azure.net/",
        "https://vault.usgovcloudapi.net",
        "https://storage.azure.com/",
        "https://contoso.blob.core.windows.net",
        "https://database.windows.net/",
        "https://communication.azure.com",
        "https://communication.azure.com//",
        "https://communication.azure.com/clients",
        "https://auth.msft.communication.azure.us",
        "https://contoso.communication.azure.com",
        "https://api.spaces.skype.com",
        "https://outlook.office365.com/",
        "https://outlook.office.com",
        "https://manage.office.com",
        "https://contoso.sharepoint.com",
        "https://contoso.crm4.dynamics.com/",
        "https://outlook.live.com",
        "https://app.vssps.visualstudio.com/",
        "https://api.loganalytics.io",
        "https://api.loganalytics.us/",
        "https://api.applicationinsights.io",
        "https://dev.azuresynapse.net/",
        "https://sql.azuresynapse.net",
        "https://adb-1234567890123456.7.azuredatabricks.net",
        "2ff814a6-3304-4ab8-85cb-cd0e6f879c1d",
        "spn:6dae42f8-4368-4678-94ff-3960e28e3630",
        "8578e004-a5c6-46e7-913e-12f58912df43",
        "https://api.azureml.ms",
        "https://contoso.azconfig.io",
        "https://azconfig.io",
        "https://api.botframework.com",
        "https://api.botframework.us",
        "https://api.powerplatform.com",
        "https://onenote.com/",
        "https://westeurope1-0.pushnp.svc.ms",
        "https://teams.cloud.microsoft",
        "https://www.microsoft365.com",
        "urn:ms-drs:enterpriseregistration.windows.net",
        "api://AzureADTokenExchange",
        "api://AzureADTokenExchangeUSGov/",
        "9188040d-6c67-4c5b-b112-36a304b66dad",
    ],
)
def test_microsofts(audience: str, example: dict[str, str]) -> None:
    """Ids and URLs, of every cloud, with and without what does not matter; never the broker's."""
    assert is_microsofts(audience)
    with pytest.raises(SettingsError, match=r"ENTRA_AUDIENCES has an audience of Microsoft's own"):
        Settings.from_env(example | {"ENTRA_AUDIENCES": f"api://{OURS}, {audience}"})


@pytest.mark.parametrize(
    "audience",
    [
        OURS,
        f"api://{OURS}",
        f"api://{OURS}/",
        "api://token-broker",
        "api://3e7a1c52-90b4-4d6f-8a21-5c0d9e4b7f10/token-broker",
        "api://contoso.com/token-broker",
        "https://contoso.com/token-broker",
        "https://contoso.onmicrosoft.com/token-broker",
        "https://contoso.partner.onmschina.cn/token-broker",
        "https://token-broker.azurewebsites.net",
        "https://broker.westeurope.cloudapp.azure.com",
        "https://broker.usgovvirginia.cloudapp.usgovcloudapi.net",
        "https://broker.chinaeast.cloudapp.chinacloudapi.cn",
        "https://contoso.azure-api.net",
        "https://contoso.azure-api.us",
        "api://microsoft/token-broker",
        "https://notmicrosoft.com",
        "https://microsoft.com.contoso.com/",
        "https://contoso.com/graph.microsoft.com",
        "urn:contoso:broker",
        "https://[broken",
        "00000003-0000-0000-d000-000000000000",
    ],
)
def test_others(audience: str, example: dict[str, str]) -> None:
    """App ID URIs that a registration of one's own can have."""
    assert not is_microsofts(audience)
    settings = Settings.from_env(example | {"ENTRA_AUDIENCES": audience})
    assert frozenset({audience}) == settings.entra.audiences


@pytest.mark.parametrize("client_id", [GRAPH, ACS, "04b07795-8ddb-461a-bbee-02f9e1bf7b46"])
def test_client_id(client_id: str, example: dict[str, str]) -> None:
    """The broker is not one of Microsoft's apps."""
    with pytest.raises(SettingsError, match="ENTRA_CLIENT_ID is an app of Microsoft's"):
        Settings.from_env(example | {"ENTRA_CLIENT_ID": client_id})
