"""The app settings: environments that an operator might deploy.

What they may be is documented in the README. The last word on connection strings has the SDK that
has to take them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from azure.data.tables import TableClient
from azure.storage.blob import ContainerClient

from shared import settings
from tests.fuzz import odd
from tests.fuzz.configured import API, CONSUMERS, ENVIRONMENT, OTHER_TENANT, TENANT, WEB_APP
from tests.fuzz.target import MARKER, differs, refusing

if TYPE_CHECKING:
    from random import Random

SECRET = "sEcReT9k"  # It stands for what is secret in the settings.
KEY = f"{MARKER}{SECRET}AAA="
LOOPBACK = r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]+)?"
ENTRA = re.compile(
    r"https://login\.(microsoftonline\.(com|us)|partner\.microsoftonline\.cn)"
    rf"|https?://{LOOPBACK}"
)
ACS = re.compile(rf"https://([a-z0-9-]+\.)+communication\.azure\.(com|us)/?|https?://{LOOPBACK}/?")
STORAGE = re.compile(
    r"https://[a-z0-9]{3,24}\.(z[0-9]+\.)?(table|blob)\.(storage\.azure\.net"
    r"|core\.(windows\.net|usgovcloudapi\.net|chinacloudapi\.cn))(/|$)"
    rf"|https?://{LOOPBACK}(/|$)"
)
FIELDS = f"DefaultEndpointsProtocol=https;AccountName=contoso;AccountKey={KEY}"
HERE = ";".join(f"{service}Endpoint=http://127.0.0.1:1/contoso" for service in ("Table", "Blob"))
STORAGE_STRINGS = (
    f"{FIELDS};EndpointSuffix=core.windows.net",
    FIELDS,
    "UseDevelopmentStorage=true",
    ";".join(
        (
            FIELDS,
            *(
                f"{name}Endpoint=https://contoso.{name.lower()}.core.windows.net"
                for name in ("Table", "Blob")
            ),
        )
    ),
    ";".join(
        (FIELDS, *(f"{name}Endpoint=http://127.0.0.1:10002/contoso" for name in ("Table", "Blob")))
    ),
)
ODD_STORAGE_STRINGS = (
    f"AccountKey={KEY};EndpointSuffix=core.windows.net",
    f"{FIELDS};TableEndpoint=https://evil.example",
    f"{FIELDS};BlobEndpoint=https://evil.example",
    f"{FIELDS};EndpointSuffix=evil.example",
    f"DefaultEndpointsProtocol=http;AccountName=contoso;AccountKey={KEY}",
    f"AccountName=contoso.table.core.windows.net/;AccountKey={KEY}",
    f"AccountName=a@evil.example;AccountKey={KEY}",
    f"BlobEndpoint=https://contoso.blob.core.windows.net;SharedAccessSignature={MARKER}",
)
# What is certainly right, by the README; what else may be is left to the code.
GOOD: dict[str, tuple[str, ...]] = {
    "ENTRA_CLIENT_ID": (API, API.upper()),
    "ENTRA_TENANT_IDS": (TENANT, f"{TENANT},{OTHER_TENANT}", f" {TENANT} , {OTHER_TENANT} ", "*"),
    "ENTRA_AUDIENCES": (f"api://{API}", f"api://{API},{API}", "api://contoso.example/acs"),
    "ENTRA_REQUIRED_SCOPE": ("access_as_user", "Acs.Token"),
    "ENTRA_ALLOWED_CLIENT_IDS": (WEB_APP, f"{WEB_APP},{API}", ""),
    "ENTRA_ADMIN_ROLE": ("Mappings.Admin",),
    "ENTRA_AUTHORITY_HOST": (
        *("https://login.microsoftonline.com", "https://login.microsoftonline.us/"),
        *("http://127.0.0.1:7072", "http://localhost:7072"),
    ),
    "ACS_ENDPOINT": (
        *("https://contoso.europe.communication.azure.com", "https://a.communication.azure.com/"),
        *("https://contoso.communication.azure.us", ""),
    ),
    "ACS_CONNECTION_STRING": (
        "",
        f"endpoint=https://contoso.europe.communication.azure.com/;accesskey={KEY}",
        f"endpoint=http://127.0.0.1:7073/;accesskey={KEY};",
    ),
    "ACS_TOKEN_SCOPES": ("chat,voip", "voip", "chat.join.limited"),
    "ACS_TOKEN_LIFETIME_MINUTES": ("60",),
    "ACS_TOKEN_MAX_LIFETIME_MINUTES": ("60", "1440", "600"),
    "ACS_EXCHANGES": ("", "entra", "entra,teams", "teams-extension"),
    "ACS_ENTRA_SCOPES": ("VoIP", "VoIP,Chat", ".default"),
    "ENTRA_CLIENT_SECRET": ("", f"{MARKER}~{SECRET}"),
    "MAPPINGS_TABLE_ENDPOINT": ("https://contoso.table.core.windows.net", ""),
    "MAPPINGS_CONNECTION_STRING": ("", *STORAGE_STRINGS),
    "MAPPINGS_TABLE": ("IdentityMappings", "abc"),
    "PRUNE_SCHEDULE": ("0 0 3 * * *", "0 */5 * * * *"),
    "PRUNE_IDLE_DAYS": ("90", "3", "36500"),
    "PRUNE_DRY_RUN": ("true", "false", "True"),
    "PRUNE_MAX_SHARE": ("0.2", "1", ".5"),
    "PRUNE_MAX_DELETES": ("1", "5000"),
    "BACKUP_SCHEDULE": ("0 30 1 * * *",),
    "BACKUP_CONTAINER": ("mappings-backup",),
    "BACKUP_BLOB_ENDPOINT": ("https://backup.blob.core.windows.net", ""),
    "BACKUP_CONNECTION_STRING": ("", *STORAGE_STRINGS),
    "AZURE_CLIENT_ID": (WEB_APP, ""),
}
TEMPTING: dict[str, tuple[str, ...]] = {
    "ENTRA_TENANT_IDS": ("common", "organizations", f"*,{TENANT}", CONSUMERS, f"{TENANT};x", ","),
    "ENTRA_AUTHORITY_HOST": (
        *("https://login.microsoftonline.com.evil.example", "http://login.microsoftonline.com"),
        *("https://login.microsoftonline.com@evil.example", "https://a@login.microsoftonline.com"),
        *("https://login.microsoftonline.com:443", "https://login.microsoftonline.com/common"),
        *("https://127.0.0.1.evil.example", "https://LOGIN.microsoftonline.com", "https://[::1"),
        *("https://login.microsoftonline.com?x", "https://login.microsoftonline.com#x"),
    ),
    "ACS_ENDPOINT": (
        *("https://evil.example", "https://communication.azure.com.evil.example"),
        *(
            "http://contoso.communication.azure.com",
            "https://evil.example\\.communication.azure.com",
        ),
        *("https://evilcommunication.azure.com", "https://a.communication.azure.com:8443"),
        *("https://evil.example?.communication.azure.com", "https://.communication.azure.com"),
    ),
    "ACS_CONNECTION_STRING": (
        f"endpoint=https://evil.example/;accesskey={KEY}",
        f"endpoint=https://a.communication.azure.com/;accesskey={KEY};endpoint=https://evil.example",
        f"endpoint=https://a.communication.azure.com/;accesskey={MARKER}!",
        "endpoint=https://a.communication.azure.com/;accesskey=",
        f"endpoint=https://[{MARKER}/;accesskey={KEY}",
        KEY,
    ),
    "MAPPINGS_CONNECTION_STRING": ODD_STORAGE_STRINGS,
    "BACKUP_CONNECTION_STRING": ODD_STORAGE_STRINGS,
    "MAPPINGS_TABLE_ENDPOINT": ("https://evil.example", "http://contoso.table.core.windows.net"),
    "ENTRA_CLIENT_CERTIFICATE": (f"-----BEGIN {MARKER}", f"/{MARKER}", MARKER),
    "PRUNE_IDLE_DAYS": ("0", "2", "٩٠", "1e2", "-90"),
    "PRUNE_MAX_SHARE": ("0", "1.1", "nan", "1e-3", "-0.5", "0.0"),
    "PRUNE_DRY_RUN": ("yes", "1", "on"),
    "ACS_TOKEN_LIFETIME_MINUTES": ("59", "1441", "60.0", "1440", " 60 ", "6 0"),
    "ENTRA_OPERATOR_TENANT_ID": (TENANT, OTHER_TENANT, CONSUMERS, "*"),
    "PRUNE_DELETED_USERS_AFTER_DAYS": ("1", "25", "26", "0"),
    "AZURE_TENANT_ID": (TENANT, "x"),
}
OPTIONAL = (
    ("ACS_ENDPOINT", "ACS_CONNECTION_STRING"),
    ("MAPPINGS_TABLE_ENDPOINT", "MAPPINGS_CONNECTION_STRING"),
    ("BACKUP_BLOB_ENDPOINT", "BACKUP_CONNECTION_STRING"),
)


class SettingsTarget:
    """Good settings are taken, wrong ones refused by name, and none that the SDK cannot use."""

    name = "settings"

    def make(self, chance: Random) -> dict[str, str]:
        """Return an environment."""
        names = list(ENVIRONMENT) + chance.sample(list(GOOD), chance.randrange(5))
        env = {name: chance.choice(GOOD[name]) for name in names}
        for pair in OPTIONAL:
            one, other = chance.sample(pair, 2)
            if env.get(one):
                env[other] = ""
            elif one in env or pair[0] in ENVIRONMENT:
                env[one], env[other] = "", chance.choice([text for text in GOOD[other] if text])
        for _ in range(chance.choice((0, 1, 1, 2))):
            name = chance.choice(list(GOOD | TEMPTING))
            kind = chance.randrange(4)
            if kind == 0 and name in TEMPTING:
                env[name] = chance.choice(TEMPTING[name])
            elif kind == 1:
                env.pop(name, None)
            elif kind == 2:
                env[name] = chance.choice((odd.text(chance), f"{MARKER}{chance.choice(odd.TEXTS)}"))
            else:
                env[name] = odd.spoilt_text(chance, env.get(name) or GOOD.get(name, ("a",))[0])
        return env

    def judge(self, value: dict[str, str]) -> str | None:
        """Compare with the README and with the SDKs."""
        read: Any = None
        try:
            with refusing(settings.SettingsError) as refusals:
                read = settings.Settings.from_env(value)
        except Exception as error:
            if type(error).__name__ == "UnsafeTextError" and not _quotes(value):
                return None  # Many problems make a long text.
            raise
        if refusals:
            problems = getattr(refusals[0], "problems", ())
            if not all(re.search(r"\b[A-Z]+_[A-Z_]+", problem) for problem in problems):
                return "a problem that names no setting"
            return differs(should=_is_plain(value), refusals=refusals)
        if SECRET in repr(read):
            return "the settings show a secret"
        return _unsound(read)


def _quotes(env: dict[str, str]) -> bool:
    """Return whether an error that these settings cause quotes one of them."""
    try:
        settings.Settings.from_env(env)
    except settings.SettingsError as error:
        return MARKER in f"{error} {error!r}" or not str(error).isprintable()
    return False


def _is_plain(env: dict[str, str]) -> bool:
    """Return whether settings are right beyond doubt, each by itself and together."""
    named = all(env.get(name, "").strip() in {*GOOD.get(name, ()), ""} for name in env)
    required = env.get("ENTRA_CLIENT_ID", "").strip() and env.get("ENTRA_TENANT_IDS", "").strip()
    (acs, mappings, backup) = (
        [bool(env.get(name, "").strip()) for name in pair] for pair in OPTIONAL
    )
    return bool(named and required and sum(acs) == 1 and sum(mappings) == 1 and sum(backup) <= 1)


def _unsound(read: Any) -> str | None:
    """Return what is wrong with settings that were accepted."""
    if not ENTRA.fullmatch(read.entra.authority):
        return "an authority that is not Entra's"
    if not ACS.fullmatch(read.acs.endpoint):
        return "an endpoint that is not that of ACS"
    if read.entra.tenant_ids is not None and CONSUMERS in read.entra.tenant_ids:
        return "the tenant of personal accounts is served"
    if (
        not read.entra.audiences
        or not read.entra.client_id
        or read.acs.lifetime > read.acs.max_lifetime
    ):
        return "settings that contradict each other"
    places = [(read.mappings, _table)]
    if read.backup is not None:
        places.append((read.backup, _container))
    for place, client in places:
        url = place.endpoint if place.connection_string is None else client(place)
        if not STORAGE.match(url):
            return "data goes to a host that is not Azure's"
    return None


def _table(place: Any) -> str:
    with TableClient.from_connection_string(place.connection_string, place.table) as client:
        return client.url


def _container(place: Any) -> str:
    with ContainerClient.from_connection_string(place.connection_string, place.container) as client:
        return client.url
