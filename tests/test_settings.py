"""The settings: defaults, and every problem at once."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from shared.settings import BackupSettings, Settings, SettingsError

CLIENT = "0fa5c3d7-b218-4e69-9c40-7d1e8b6f52a3"
TENANT = "3e7a1c52-90b4-4d6f-8a21-5c0d9e4b7f10"
EXTERNAL_ID = f"https://{TENANT}.ciamlogin.com"
REQUIRED = {
    "ENTRA_CLIENT_ID": CLIENT,
    "ENTRA_TENANT_IDS": TENANT,
    "ACS_ENDPOINT": "https://contoso.communication.azure.com",
    "MAPPINGS_TABLE_ENDPOINT": "https://contoso.table.core.windows.net",
}
ACS_BY_KEY = "endpoint=https://contoso.communication.azure.com/;accesskey=c2VjcmV0"
STORAGE_BY_KEY = "DefaultEndpointsProtocol=https;AccountName=contoso;AccountKey=c2VjcmV0"


def test_example_is_complete(example: dict[str, str]) -> None:
    """A copy of the example serves as it is."""
    settings = Settings.from_env(example)

    assert "http://127.0.0.1:7072" == settings.entra.authority
    assert settings.prune.dry_run
    assert settings.backup is not None
    assert "UseDevelopmentStorage=true" == settings.backup.connection_string


def test_defaults() -> None:
    """Four settings are enough; the others are what the documentation says."""
    settings = Settings.from_env(REQUIRED)

    assert frozenset({f"api://{CLIENT}"}) == settings.entra.audiences
    assert "access_as_user" == settings.entra.required_scope
    assert frozenset() == settings.entra.allowed_client_ids
    assert ("Mappings.Admin", None) == (
        settings.entra.admin_role,
        settings.entra.operator_tenant_id,
    )
    assert "https://login.microsoftonline.com" == settings.entra.authority
    assert "https://sts.windows.net" == settings.entra.v1_issuer
    assert TENANT == settings.entra.keys_of
    assert (("chat", "voip"), timedelta(hours=1)) == (settings.acs.scopes, settings.acs.lifetime)
    assert timedelta(hours=24) == settings.acs.max_lifetime
    assert "IdentityMappings" == settings.mappings.table
    assert (timedelta(days=90), False, 0.2, 5000) == (
        settings.prune.idle,
        settings.prune.dry_run,
        settings.prune.max_share,
        settings.prune.max_deletes,
    )
    assert settings.backup is None
    assert settings.leavers is None
    assert (None, None) == (settings.exchanges.entra, settings.exchanges.teams)
    assert settings.managed_identity_client_id is None


@pytest.mark.parametrize(
    ("changes", "read"),
    [
        ({"ENTRA_TENANT_IDS": "*"}, lambda s: (s.entra.tenant_ids, s.entra.keys_of)),
        ({"ENTRA_TENANT_IDS": f"{TENANT}, {CLIENT}"}, lambda s: (None, s.entra.keys_of)),
    ],
    ids=["every organisation", "several"],
)
def test_more_tenants_than_one(changes: dict[str, str], read: Any) -> None:
    """Then the keys of all organisations are needed."""
    assert (None, "organizations") == read(Settings.from_env(REQUIRED | changes))


@pytest.mark.parametrize("tenants", [TENANT, f"{TENANT},{CLIENT}", "*"])
def test_operator(tenants: str) -> None:
    """The operator's tenant is one of those that are served."""
    changes = {"ENTRA_TENANT_IDS": tenants, "ENTRA_OPERATOR_TENANT_ID": TENANT.upper()}

    assert TENANT == Settings.from_env(REQUIRED | changes).entra.operator_tenant_id


@pytest.mark.parametrize(
    ("tenants", "operator"),
    [
        pytest.param(TENANT, CLIENT, id="not served"),
        pytest.param("*", "9188040d-6c67-4c5b-b112-36a304b66dad", id="personal accounts"),
    ],
)
def test_operator_of_no_tenant(tenants: str, operator: str) -> None:
    """A tenant that is not served cannot be the operator's."""
    changes = {"ENTRA_TENANT_IDS": tenants, "ENTRA_OPERATOR_TENANT_ID": operator}

    with pytest.raises(SettingsError, match="not one of ENTRA_TENANT_IDS"):
        Settings.from_env(REQUIRED | changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({"ENTRA_CLIENT_ID": CLIENT.upper()}, CLIENT, id="a GUID in capitals"),
        pytest.param({"ENTRA_CLIENT_ID": f" {CLIENT} "}, CLIENT, id="spaces around"),
    ],
)
def test_forgives(changes: dict[str, str], expected: str) -> None:
    """Harmless differences in spelling are accepted."""
    assert expected == Settings.from_env(REQUIRED | changes).entra.client_id


@pytest.mark.parametrize(
    ("host", "v1_issuer"),
    [
        ("https://login.microsoftonline.us", "https://sts.windows.net"),
        ("https://login.partner.microsoftonline.cn/", "https://sts.chinacloudapi.cn"),
        ("http://127.0.0.1:7072", "https://sts.windows.net"),
        (EXTERNAL_ID, None),
    ],
)
def test_authorities(host: str, v1_issuer: str | None) -> None:
    """Each cloud has its v1 issuer; the local stack has the public cloud's, External ID none."""
    settings = Settings.from_env(REQUIRED | {"ENTRA_AUTHORITY_HOST": host})

    assert (host.rstrip("/"), v1_issuer) == (settings.entra.authority, settings.entra.v1_issuer)


@pytest.mark.parametrize(
    ("host", "graph", "audience"),
    [
        ("", "https://graph.microsoft.com", "https://graph.microsoft.com"),
        (
            "https://login.microsoftonline.us",
            "https://graph.microsoft.us",
            "https://graph.microsoft.us",
        ),
        (
            "https://login.partner.microsoftonline.cn",
            "https://microsoftgraph.chinacloudapi.cn",
            "https://microsoftgraph.chinacloudapi.cn",
        ),
        ("http://127.0.0.1:7072", "http://127.0.0.1:7072", "https://graph.microsoft.com"),
        (EXTERNAL_ID, "https://graph.microsoft.com", "https://graph.microsoft.com"),
    ],
)
def test_graph(host: str, graph: str, audience: str) -> None:
    """Each cloud has its own Microsoft Graph; the local one is where the local Entra is."""
    settings = Settings.from_env(REQUIRED | {"ENTRA_AUTHORITY_HOST": host})

    assert (graph, audience) == (settings.entra.graph, settings.entra.graph_audience)


def test_leavers() -> None:
    """Microsoft Graph is asked if the days are set."""
    settings = Settings.from_env(
        REQUIRED | {"PRUNE_DELETED_USERS_AFTER_DAYS": "14", "AZURE_TENANT_ID": TENANT.upper()}
    )

    assert settings.leavers
    assert (timedelta(days=14), TENANT, 0.2, 500) == (
        settings.leavers.after,
        settings.leavers.tenant_id,
        settings.leavers.max_share,
        settings.leavers.max_people,
    )


@pytest.mark.parametrize("days", ["0", "26", "a week"])
def test_days_of_leavers(days: str) -> None:
    """They are fewer than Entra keeps deleted users for, and at least one."""
    changes = {"PRUNE_DELETED_USERS_AFTER_DAYS": days, "AZURE_TENANT_ID": TENANT}

    with pytest.raises(SettingsError) as caught:
        Settings.from_env(REQUIRED | changes)

    assert (
        "PRUNE_DELETED_USERS_AFTER_DAYS is not a whole number from 1 to 25",
    ) == caught.value.problems


def test_tenant_of_leavers() -> None:
    """It has to be known whose directory the managed identity can read."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_env(REQUIRED | {"PRUNE_DELETED_USERS_AFTER_DAYS": "7"})

    assert (
        "AZURE_TENANT_ID is missing: PRUNE_DELETED_USERS_AFTER_DAYS is set",
    ) == caught.value.problems


def test_exchanges() -> None:
    """Each exchange asks for its own scopes of its own resource."""
    clients, teams = "https://communication.azure.com/clients", "https://auth.msft.communication"

    on = Settings.from_env(REQUIRED | {"ACS_EXCHANGES": "teams, entra"}).exchanges

    assert on.entra is not None
    assert (f"{clients}/VoIP",) == on.entra.scopes
    assert {clients, f"{clients}/", "2a04943b-b6a7-4f65-8786-2bb6131b59f6"} == on.entra.audiences
    assert on.teams is not None
    assert (
        f"{teams}.azure.com/Teams.ManageCalls",
        f"{teams}.azure.com/Teams.ManageChats",
    ) == on.teams.scopes
    assert "1fd5118e-2576-4263-8130-9503064c837a" in on.teams.audiences
    assert (None, None) == (on.client_secret, on.client_certificate)


def test_scopes_of_exchanges() -> None:
    """A token that the caller holds has to have one of them; with `.default`, any will do."""
    changes = {"ACS_EXCHANGES": "entra,teams-extension", "ACS_ENTRA_SCOPES": "VoIP.Join,Chat"}
    some = Settings.from_env(REQUIRED | changes).exchanges
    everything = Settings.from_env(REQUIRED | changes | {"ACS_ENTRA_SCOPES": ".default"}).exchanges

    assert some.entra is not None
    assert some.entra.has_scope(["VoIP", "Chat"])
    assert not some.entra.has_scope(["VoIP"])
    assert everything.entra is not None
    assert ("https://communication.azure.com/clients/.default",) == everything.entra.scopes
    assert everything.entra.has_scope(["VoIP"])
    assert some.teams is not None
    assert ("teams-extension", 1) == (some.teams.name, len(some.teams.scopes))


@pytest.mark.parametrize(
    ("host", "audience", "teams", "cloud"),
    [
        ("login.microsoftonline.com", "api://AzureADTokenExchange", "com", "orgid"),
        ("login.microsoftonline.us", "api://AzureADTokenExchangeUSGov", "us", "gcch"),
        ("login.partner.microsoftonline.cn", "api://AzureADTokenExchangeChina", "com", "orgid"),
    ],
)
def test_clouds_of_exchanges(host: str, audience: str, teams: str, cloud: str) -> None:
    """Each cloud has its own audience for proofs, app for Teams users, and ids of them."""
    changes = {"ENTRA_AUTHORITY_HOST": f"https://{host}", "ACS_EXCHANGES": "teams"}
    settings = Settings.from_env(REQUIRED | changes)

    assert audience == settings.entra.token_exchange_audience
    assert cloud == settings.entra.teams_cloud
    assert settings.exchanges.teams is not None
    assert f"https://auth.msft.communication.azure.{teams}" == settings.exchanges.teams.uri


def test_both_proofs() -> None:
    """A registration proves itself in one way; the problem quotes no secret."""
    changes = {"ENTRA_CLIENT_SECRET": "s3cret", "ENTRA_CLIENT_CERTIFICATE": "s3cret.pem"}

    with pytest.raises(SettingsError, match="set at most one of ENTRA_CLIENT_CERT") as caught:
        Settings.from_env(REQUIRED | changes)

    assert "s3cret" not in str(caught.value)
    secret = Settings.from_env(REQUIRED | {"ENTRA_CLIENT_SECRET": "s3cret"})
    assert "s3cret" == secret.exchanges.client_secret
    assert "s3cret" not in repr(secret)


def test_exchange_without_an_authority() -> None:
    """Problems are named one by one, also where one setting depends on another."""
    changes = {"ENTRA_AUTHORITY_HOST": "https://evil.example", "ACS_EXCHANGES": "teams"}

    with pytest.raises(SettingsError) as caught:
        Settings.from_env(REQUIRED | changes)

    assert 1 == len(caught.value.problems)


def test_access_keys() -> None:
    """Connection strings work instead of managed identity, and are not shown."""
    settings = Settings.from_env(
        REQUIRED
        | {
            "ACS_ENDPOINT": "",
            "ACS_CONNECTION_STRING": ACS_BY_KEY,
            "MAPPINGS_TABLE_ENDPOINT": "",
            "MAPPINGS_CONNECTION_STRING": STORAGE_BY_KEY,
        }
    )

    assert "https://contoso.communication.azure.com" == settings.acs.endpoint
    assert "c2VjcmV0" == settings.acs.access_key
    assert STORAGE_BY_KEY == settings.mappings.connection_string
    assert "c2VjcmV0" not in repr(settings)


def test_backup() -> None:
    """Backups go to a container that a managed identity or a key opens."""
    by_identity = Settings.from_env(
        REQUIRED | {"BACKUP_BLOB_ENDPOINT": "https://contoso.blob.core.windows.net/"}
    ).backup
    by_key = Settings.from_env(
        REQUIRED | {"BACKUP_CONNECTION_STRING": STORAGE_BY_KEY, "BACKUP_CONTAINER": "mine"}
    ).backup

    assert BackupSettings("https://contoso.blob.core.windows.net", None, "mappings-backup") == (
        by_identity
    )
    assert BackupSettings(None, STORAGE_BY_KEY, "mine") == by_key
    assert "c2VjcmV0" not in repr(by_key)


def test_both_ways_to_the_backup() -> None:
    """Setting both ways is a problem, since it is not clear which account is meant."""
    with pytest.raises(SettingsError, match="at most one of BACKUP_BLOB_ENDPOINT"):
        Settings.from_env(
            REQUIRED
            | {
                "BACKUP_BLOB_ENDPOINT": "https://contoso.blob.core.windows.net",
                "BACKUP_CONNECTION_STRING": STORAGE_BY_KEY,
            }
        )


def test_development_storage() -> None:
    """The SDK takes it in one spelling only."""
    changes = {
        "MAPPINGS_TABLE_ENDPOINT": "",
        "MAPPINGS_CONNECTION_STRING": "usedevelopmentstorage=True;",
    }
    settings = Settings.from_env(REQUIRED | changes)

    assert "UseDevelopmentStorage=true" == settings.mappings.connection_string


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ENTRA_CLIENT_ID", ""),
        ("ENTRA_CLIENT_ID", "<your client id>"),
        ("ENTRA_CLIENT_ID", "00000000-0000-0000-0000-00000000000g"),
        ("ENTRA_TENANT_IDS", ""),
        ("ENTRA_TENANT_IDS", " , "),
        ("ENTRA_TENANT_IDS", "common"),
        ("ENTRA_TENANT_IDS", "organizations"),
        ("ENTRA_TENANT_IDS", "contoso.com"),
        ("ENTRA_TENANT_IDS", f"*,{TENANT}"),
        ("ENTRA_TENANT_IDS", "9188040d-6c67-4c5b-b112-36a304b66dad"),
        ("ENTRA_AUDIENCES", ","),
        ("ENTRA_REQUIRED_SCOPE", "two scopes"),
        ("ENTRA_REQUIRED_SCOPE", 'a"quote'),
        ("ENTRA_ALLOWED_CLIENT_IDS", "my-app"),
        ("ENTRA_ALLOWED_CLIENT_IDS", ","),
        ("ENTRA_ALLOWED_CLIENT_IDS", " , ,"),
        ("ENTRA_ADMIN_ROLE", "two roles"),
        ("ENTRA_ADMIN_ROLE", "x" * 121),
        ("ENTRA_OPERATOR_TENANT_ID", "contoso.com"),
        ("ENTRA_AUTHORITY_HOST", "http://login.microsoftonline.com"),
        ("ENTRA_AUTHORITY_HOST", "https://Login.microsoftonline.com"),
        ("ENTRA_AUTHORITY_HOST", "http://Localhost"),
        ("ACS_ENDPOINT", "http://LOCALHOST:7073"),
        ("ENTRA_AUTHORITY_HOST", "https://login.microsoftonline.com.evil.example"),
        ("ENTRA_AUTHORITY_HOST", "https://login.microsoftonline.com@evil.example"),
        ("ENTRA_AUTHORITY_HOST", "https://login.microsoftonline.com/common"),
        ("ENTRA_AUTHORITY_HOST", "https://login.microsoftonline.com:8443"),
        ("ENTRA_AUTHORITY_HOST", "https://login.microsoftonline.com?x"),
        ("ENTRA_AUTHORITY_HOST", "https://[bad"),
        ("ENTRA_AUTHORITY_HOST", "login.microsoftonline.com"),
        ("ACS_ENDPOINT", "http://contoso.communication.azure.com"),
        ("ACS_ENDPOINT", "http://127.0.0.1:7073"),
        ("ACS_ENDPOINT", "https://contoso.communication.azure.com.evil.example"),
        ("ACS_ENDPOINT", "https://evil.example#.communication.azure.com"),
        ("ACS_ENDPOINT", "https://contoso.communication.azure.com/path"),
        ("ACS_EXCHANGES", "entra,skype"),
        ("ACS_EXCHANGES", "Entra"),
        ("ACS_EXCHANGES", ","),
        ("ACS_EXCHANGES", "teams,teams-extension"),
        ("ACS_ENTRA_SCOPES", "voip"),
        ("ACS_ENTRA_SCOPES", "VoIP,.default"),
        ("ACS_ENTRA_SCOPES", ","),
        ("ACS_TOKEN_SCOPES", "chat,video"),
        ("ACS_TOKEN_SCOPES", ","),
        ("ACS_TOKEN_LIFETIME_MINUTES", "59"),
        ("ACS_TOKEN_LIFETIME_MINUTES", "1441"),
        ("ACS_TOKEN_LIFETIME_MINUTES", "60.5"),
        ("ACS_TOKEN_LIFETIME_MINUTES", "an hour"),
        ("ACS_TOKEN_MAX_LIFETIME_MINUTES", "0"),
        ("MAPPINGS_TABLE_ENDPOINT", "http://contoso.table.core.windows.net"),
        ("MAPPINGS_TABLE_ENDPOINT", "https://contoso.blob.core.windows.net"),
        ("MAPPINGS_TABLE_ENDPOINT", "https://contoso.table.core.windows.net.evil.example"),
        ("MAPPINGS_TABLE", "identity-mappings"),
        ("MAPPINGS_TABLE", "x" * 56),
        ("AZURE_CLIENT_ID", "my-identity"),
        ("AZURE_TENANT_ID", "contoso.com"),
        ("PRUNE_SCHEDULE", "0 3 * * *"),
        ("PRUNE_SCHEDULE", "0 0 3 * * ;"),
        ("PRUNE_IDLE_DAYS", "2"),
        ("PRUNE_IDLE_DAYS", "-90"),
        ("PRUNE_DRY_RUN", "yes"),
        ("PRUNE_MAX_SHARE", "0"),
        ("PRUNE_MAX_SHARE", "0.0"),
        ("PRUNE_MAX_SHARE", "1.1"),
        ("PRUNE_MAX_SHARE", "1.2.3"),
        ("PRUNE_MAX_SHARE", "nan"),
        ("PRUNE_MAX_DELETES", "0"),
        ("BACKUP_BLOB_ENDPOINT", "http://contoso.blob.core.windows.net"),
        ("BACKUP_BLOB_ENDPOINT", "https://contoso.table.core.windows.net"),
        ("BACKUP_BLOB_ENDPOINT", "https://contoso.blob.core.windows.net/container"),
        ("BACKUP_CONTAINER", "My_Backups"),
        ("BACKUP_CONTAINER", "ab"),
        ("BACKUP_CONTAINER", "a--b"),
        ("BACKUP_CONTAINER", "-ab"),
        ("BACKUP_CONTAINER", "x" * 64),
        ("BACKUP_SCHEDULE", "30 1 * * *"),
        ("PRUNE_MAX_DELETED_USERS", "0"),
    ],
)
def test_refuses(name: str, value: str) -> None:
    """One setting out of order is enough, and is named."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_env(REQUIRED | {name: value})

    assert [name] == [problem.split()[0] for problem in caught.value.problems if name in problem]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ACS_CONNECTION_STRING", "endpoint=http://contoso.communication.azure.com;accesskey=eA=="),
        ("ACS_CONNECTION_STRING", "endpoint=https://contoso.communication.azure.com"),
        ("ACS_CONNECTION_STRING", "endpoint=https://contoso.communication.azure.com;accesskey=?"),
        ("ACS_CONNECTION_STRING", "accesskey=eA=="),
        ("MAPPINGS_CONNECTION_STRING", f"{STORAGE_BY_KEY};TableEndpoint=https://[eA=="),
        ("MAPPINGS_CONNECTION_STRING", f"{STORAGE_BY_KEY};TableEndpoint=https://evil.example"),
        ("MAPPINGS_CONNECTION_STRING", f"{STORAGE_BY_KEY};EndpointSuffix=evil.example"),
        ("MAPPINGS_CONNECTION_STRING", f"{STORAGE_BY_KEY};garbage"),
        ("MAPPINGS_CONNECTION_STRING", f"{STORAGE_BY_KEY};AccountName=twice"),
        ("MAPPINGS_CONNECTION_STRING", STORAGE_BY_KEY.replace(";Account", "; Account")),
        ("MAPPINGS_CONNECTION_STRING", "AccountName=evil.example/;AccountKey=c2VjcmV0"),
        ("MAPPINGS_CONNECTION_STRING", "AccountName=contoso;AccountKey=?"),
        ("MAPPINGS_CONNECTION_STRING", "AccountKey=c2VjcmV0"),
        (
            "MAPPINGS_CONNECTION_STRING",
            "AccountKey=eA==;TableEndpoint=https://contoso.table.core.windows.net",
        ),
        ("MAPPINGS_CONNECTION_STRING", "UseDevelopmentStorage=false"),
        ("MAPPINGS_CONNECTION_STRING", STORAGE_BY_KEY.replace("https", "http")),
        ("MAPPINGS_CONNECTION_STRING", f"{STORAGE_BY_KEY};TableEndpoint=http://evil.example/"),
        ("BACKUP_CONNECTION_STRING", f"{STORAGE_BY_KEY};BlobEndpoint=https://evil.example"),
        ("BACKUP_CONNECTION_STRING", f"{STORAGE_BY_KEY};EndpointSuffix=evil.example"),
        ("BACKUP_CONNECTION_STRING", "AccountName=contoso;AccountKey=?"),
        (
            "BACKUP_CONNECTION_STRING",
            "AccountKey=eA==;BlobEndpoint=https://contoso.blob.core.windows.net",
        ),
        ("ACS_CONNECTION_STRING", "endpoint=https://.communication.azure.com;accesskey=eA=="),
        ("ACS_CONNECTION_STRING", "endpoint=https://contoso.communication.azure.com;accesskey="),
    ],
)
def test_refuses_connection_strings(name: str, value: str) -> None:
    """A connection string is checked as an endpoint is, and never quoted."""
    endpoints = {"ACS": "ACS_ENDPOINT", "MAP": "MAPPINGS_TABLE_ENDPOINT", "BAC": ""}

    with pytest.raises(SettingsError) as caught:
        Settings.from_env(REQUIRED | {endpoints[name[:3]]: "", name: value})

    assert all(problem.startswith(f"{name} ") for problem in caught.value.problems)
    assert "eA==" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        pytest.param(
            {"ENTRA_TENANT_IDS": CLIENT}, "a tenant that is not ENTRA_TENANT_IDS", id="another"
        ),
        pytest.param(
            {"ENTRA_TENANT_IDS": f"{TENANT},{CLIENT}"}, "is not ENTRA_TENANT_IDS", id="two tenants"
        ),
        pytest.param({"ENTRA_TENANT_IDS": "*"}, "is not ENTRA_TENANT_IDS", id="every tenant"),
        pytest.param(
            {"ENTRA_AUTHORITY_HOST": "https://contoso.ciamlogin.com"},
            "does not name the tenant by its id",
            id="by name",
        ),
        pytest.param(
            {"ENTRA_AUTHORITY_HOST": f"{EXTERNAL_ID}.evil.example"},
            "is not an Entra host",
            id="evil",
        ),
        pytest.param({"ENTRA_AUTHORITY_HOST": f"{EXTERNAL_ID}:8443"}, "without a port", id="port"),
        pytest.param(
            {"ACS_EXCHANGES": "entra"}, "ACS_EXCHANGES needs people of a workforce", id="exchange"
        ),
    ],
)
def test_external_id(changes: dict[str, str], problem: str) -> None:
    """An External ID authority serves the one tenant that it names, and no exchange."""
    good = REQUIRED | {"ENTRA_AUTHORITY_HOST": EXTERNAL_ID}
    assert TENANT == Settings.from_env(good).entra.keys_of

    with pytest.raises(SettingsError, match=problem):
        Settings.from_env(good | changes)


def test_lifetime_above_its_ceiling() -> None:
    """The default may not be longer than what a caller may ask for."""
    changes = {"ACS_TOKEN_LIFETIME_MINUTES": "120", "ACS_TOKEN_MAX_LIFETIME_MINUTES": "60"}

    with pytest.raises(SettingsError, match=r"ENTRA_CLIENT_ID.*above ACS_TOKEN_MAX_LIFETIME"):
        Settings.from_env(REQUIRED | changes | {"ENTRA_CLIENT_ID": ""})


def test_every_problem_at_once() -> None:
    """All problems are reported together."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_env({"PRUNE_IDLE_DAYS": "0", "PRUNE_MAX_SHARE": "2"})

    assert (
        "ENTRA_CLIENT_ID is missing",
        "ENTRA_TENANT_IDS is missing",
        "set either ACS_ENDPOINT or ACS_CONNECTION_STRING",
        "set either MAPPINGS_TABLE_ENDPOINT or MAPPINGS_CONNECTION_STRING",
        "PRUNE_IDLE_DAYS is not a whole number from 3 to 36500",
        "PRUNE_MAX_SHARE is not a number above 0 and at most 1",
    ) == caught.value.problems


def test_both_ways_to_acs() -> None:
    """Setting both ways to open a service is a problem."""
    with pytest.raises(SettingsError, match="set either ACS_ENDPOINT or ACS_CONNECTION_STRING"):
        Settings.from_env(REQUIRED | {"ACS_CONNECTION_STRING": ACS_BY_KEY})
