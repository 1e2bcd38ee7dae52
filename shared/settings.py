"""The app settings, read once and checked whole."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar, cast
from urllib.parse import urlsplit

from shared.identifiers import GUID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from urllib.parse import SplitResult

ACS_SCOPES = frozenset({"chat", "voip", "chat.join", "chat.join.limited", "voip.join"})
LIFETIME_MINUTES = range(60, 1440 + 1)  # What ACS takes.
TOUCH_INTERVAL = timedelta(hours=24)  # How stale `lastUsedOn` may become before it is written.
# An idle person's last token, the touch before it, and a day for clocks and operators.
MIN_IDLE = timedelta(minutes=LIFETIME_MINUTES[-1]) + TOUCH_INTERVAL + timedelta(days=1)

ANY_TENANT = "*"
CONSUMERS = "9188040d-6c67-4c5b-b112-36a304b66dad"  # The tenant of personal Microsoft accounts.
# Entra's v1 issuer by authority host.
# https://learn.microsoft.com/entra/identity-platform/authentication-national-cloud
PUBLIC_CLOUD = "login.microsoftonline.com"
V1_ISSUERS = {
    PUBLIC_CLOUD: "https://sts.windows.net",
    "login.microsoftonline.us": "https://sts.windows.net",
    "login.partner.microsoftonline.cn": "https://sts.chinacloudapi.cn",
}
ACS_HOST_SUFFIXES = (".communication.azure.com", ".communication.azure.us")
TABLE_HOST = re.compile(
    r"[a-z0-9]{3,24}\.(z\d+\.)?table(\.storage\.azure\.net"
    r"|\.core\.(windows\.net|usgovcloudapi\.net|chinacloudapi\.cn))"
)
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
Value = TypeVar("Value")


class SettingsError(ValueError):
    """Settings that cannot be served from; `problems` names each of them."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(self.problems))


@dataclass(frozen=True, slots=True)
class EntraSettings:
    """Whose tokens are taken."""

    client_id: str
    tenant_ids: frozenset[str] | None  # None: every organisation's.
    audiences: frozenset[str]
    required_scope: str
    allowed_client_ids: frozenset[str]
    authority: str  # `https://login.microsoftonline.com`, without a trailing slash.

    @property
    def v1_issuer(self) -> str:
        """What v1 issuers begin with: `https://sts.windows.net` in the public cloud."""
        host = self.authority.partition("://")[2]
        return V1_ISSUERS.get(host, V1_ISSUERS[PUBLIC_CLOUD])

    @property
    def keys_of(self) -> str:
        """Whose signing keys are asked for: the one tenant's, or those of all organisations."""
        if self.tenant_ids is not None and len(self.tenant_ids) == 1:
            return next(iter(self.tenant_ids))
        return "organizations"


@dataclass(frozen=True, slots=True)
class AcsSettings:
    """Which ACS resource issues tokens, and how far they may reach."""

    endpoint: str
    access_key: str | None = field(repr=False)  # None: opened by managed identity.
    scopes: tuple[str, ...]
    lifetime: timedelta
    max_lifetime: timedelta


@dataclass(frozen=True, slots=True)
class MappingsSettings:
    """Where the identity mappings are kept: an endpoint or a connection string."""

    endpoint: str | None
    connection_string: str | None = field(repr=False)
    table: str


@dataclass(frozen=True, slots=True)
class PruneSettings:
    """When an identity counts as idle, and the brakes on removing it."""

    idle: timedelta
    dry_run: bool
    max_share: float
    max_deletes: int


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings, valid together."""

    entra: EntraSettings
    acs: AcsSettings
    mappings: MappingsSettings
    prune: PruneSettings
    managed_identity_client_id: str | None

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Settings:
        """Read the settings from a mapping such as `os.environ`.

        Raises:
            SettingsError: at least one is missing or wrong; the error names every one.
        """
        reader = _Reader(env)
        settings = cls(
            entra=_entra(reader),
            acs=_acs(reader),
            mappings=_mappings(reader),
            prune=_prune(reader),
            managed_identity_client_id=reader.read("AZURE_CLIENT_ID", _guid, "") or None,
        )
        if reader.problems:
            raise SettingsError(reader.problems)
        return settings


class _Reader:
    """Reads one setting after the other, and keeps what is wrong with each."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env
        self.problems: list[str] = []

    def text(self, name: str) -> str:
        return self._env.get(name, "").strip()

    def read(self, name: str, parse: Callable[[str], Value], default: str | None = None) -> Value:
        """Parse a setting, or its default; without a default it is required.

        What is returned after a problem is never used: `from_env` raises.
        """
        text = self.text(name) or default
        if text is None:
            self.problems.append(f"{name} is missing")
            return cast("Value", None)
        try:
            return parse(text)
        except ValueError as exc:
            self.problems.append(f"{name} {exc}")
            return cast("Value", None)

    def one_of(self, name: str, other: str) -> bool:
        """Return whether the first of two settings is the one that is set."""
        if bool(self.text(name)) == bool(self.text(other)):
            self.problems.append(f"set one of {name} and {other}")
        return bool(self.text(name))


def _matching(pattern: str, what: str) -> Callable[[str], str]:
    """Return a parser of texts of one form."""

    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"is not {what}")
        return text

    return parse


def _count(least: int, most: int) -> Callable[[str], int]:
    """Return a parser of whole numbers in a range."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
            raise ValueError(f"is not a whole number from {least} to {most}")
        return int(text)

    return parse


def _duration(unit: timedelta, least: int, most: int) -> Callable[[str], timedelta]:
    """Return a parser of whole numbers of a unit of time."""
    count = _count(least, most)
    return lambda text: unit * count(text)


# scope-token, RFC 6749 section 3.3.
_scope_token = _matching(r"[\x21\x23-\x5b\x5d-\x7e]+", "one scope, such as access_as_user")
# Table Storage takes 63 characters; the ledger's name has eight more.
_table_name = _matching(
    r"[A-Za-z][A-Za-z0-9]{2,54}", "a table name: 3 to 55 letters and digits, first a letter"
)
_ncrontab = _matching(
    r"[0-9A-Za-z*/,-]+( +[0-9A-Za-z*/,-]+){5}",
    "an NCRONTAB expression of six fields, such as 0 0 3 * * *",
)
_lifetime = _duration(timedelta(minutes=1), LIFETIME_MINUTES[0], LIFETIME_MINUTES[-1])


def _entra(reader: _Reader) -> EntraSettings:
    client_id = reader.read("ENTRA_CLIENT_ID", _guid)
    return EntraSettings(
        client_id=client_id,
        tenant_ids=reader.read("ENTRA_TENANT_IDS", _tenants),
        audiences=reader.read("ENTRA_AUDIENCES", _audiences, f"api://{client_id}"),
        required_scope=reader.read("ENTRA_REQUIRED_SCOPE", _scope_token, "access_as_user"),
        allowed_client_ids=reader.read("ENTRA_ALLOWED_CLIENT_IDS", _guids, ""),
        authority=reader.read("ENTRA_AUTHORITY_HOST", _authority, f"https://{PUBLIC_CLOUD}"),
    )


def _acs(reader: _Reader) -> AcsSettings:
    endpoint, access_key = "", None
    if reader.one_of("ACS_ENDPOINT", "ACS_CONNECTION_STRING"):
        endpoint = reader.read("ACS_ENDPOINT", _acs_endpoint)
    elif reader.text("ACS_CONNECTION_STRING"):
        endpoint = reader.read("ACS_CONNECTION_STRING", _acs_connection_endpoint)
        access_key = reader.read("ACS_CONNECTION_STRING", _acs_connection_key)
    lifetime = reader.read("ACS_TOKEN_LIFETIME_MINUTES", _lifetime, "60")
    max_lifetime = reader.read("ACS_TOKEN_MAX_LIFETIME_MINUTES", _lifetime, "1440")
    if lifetime and max_lifetime and lifetime > max_lifetime:
        reader.problems.append("ACS_TOKEN_LIFETIME_MINUTES is above ACS_TOKEN_MAX_LIFETIME_MINUTES")
    return AcsSettings(
        endpoint=endpoint,
        access_key=access_key,
        scopes=reader.read("ACS_TOKEN_SCOPES", _acs_scopes, "chat,voip"),
        lifetime=lifetime,
        max_lifetime=max_lifetime,
    )


def _mappings(reader: _Reader) -> MappingsSettings:
    endpoint, connection_string = None, None
    if reader.one_of("MAPPINGS_TABLE_ENDPOINT", "MAPPINGS_CONNECTION_STRING"):
        endpoint = reader.read("MAPPINGS_TABLE_ENDPOINT", _table_endpoint)
    elif reader.text("MAPPINGS_CONNECTION_STRING"):
        connection_string = reader.read("MAPPINGS_CONNECTION_STRING", _table_connection)
    return MappingsSettings(
        endpoint=endpoint,
        connection_string=connection_string,
        table=reader.read("MAPPINGS_TABLE", _table_name, "IdentityMappings"),
    )


def _prune(reader: _Reader) -> PruneSettings:
    # Only the timer's binding uses the schedule, as %PRUNE_SCHEDULE%; here it is only checked.
    reader.read("PRUNE_SCHEDULE", _ncrontab, "0 0 3 * * *")
    return PruneSettings(
        idle=reader.read(
            "PRUNE_IDLE_DAYS", _duration(timedelta(days=1), MIN_IDLE.days, 36500), "90"
        ),
        dry_run=reader.read("PRUNE_DRY_RUN", _boolean, "false"),
        max_share=reader.read("PRUNE_MAX_SHARE", _share, "0.2"),
        max_deletes=reader.read("PRUNE_MAX_DELETES", _count(1, 1_000_000), "5000"),
    )


def _guid(text: str) -> str:
    if text and not GUID.fullmatch(text.lower()):
        raise ValueError("is not a GUID")
    return text.lower()


def _items(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(",") if item.strip())


def _audiences(text: str) -> frozenset[str]:
    if not _items(text):
        raise ValueError("is not a list of audiences")
    return frozenset(_items(text))


def _guids(text: str) -> frozenset[str]:
    return frozenset(_guid(item) for item in _items(text))


def _tenants(text: str) -> frozenset[str] | None:
    if text == ANY_TENANT:
        return None
    tenants = frozenset(_items(text))
    if not tenants or not all(GUID.fullmatch(tenant.lower()) for tenant in tenants):
        raise ValueError("is neither a list of tenant ids (GUIDs) nor *")
    if CONSUMERS in _guids(text):
        raise ValueError("has the tenant of personal accounts, which is never served")
    return _guids(text)


def _split(text: str) -> SplitResult:
    try:
        return urlsplit(text)
    except ValueError:  # Its text may quote what stands in a connection string.
        raise ValueError("is not a URL") from None


def _origin(text: str) -> tuple[str, str]:
    """Return host and origin of a URL that is an origin and nothing more."""
    parts = _split(text.rstrip("/"))
    host = parts.hostname or ""
    bare = f"{parts.scheme}://{parts.netloc}" == text.rstrip("/") and "@" not in parts.netloc
    if not bare or parts.scheme not in {"https", "http"} or not host:
        raise ValueError("is not a URL of scheme and host alone")
    if host not in LOOPBACK_HOSTS and (parts.scheme != "https" or parts.netloc != host):
        raise ValueError("is not https on the default port")
    return host, text.rstrip("/")


def _authority(text: str) -> str:
    host, origin = _origin(text)
    if host not in LOOPBACK_HOSTS and host not in V1_ISSUERS:
        raise ValueError(f"is none of Entra's hosts: {', '.join(V1_ISSUERS)}")
    return origin


def _acs_origin(text: str) -> str:
    host, origin = _origin(text)
    if host not in LOOPBACK_HOSTS and not host.endswith(ACS_HOST_SUFFIXES):
        raise ValueError("is not the endpoint of an ACS resource (*.communication.azure.com)")
    return origin


def _acs_endpoint(text: str) -> str:
    origin = _acs_origin(text)
    if not origin.startswith("https:"):
        raise ValueError("is not https, which a managed identity needs")
    return origin


def _fields(text: str) -> dict[str, str]:
    """Return the fields of a connection string, by lower-case name."""
    parts = [part.partition("=") for part in text.removesuffix(";").split(";")]
    fields = {name.lower(): value for name, _, value in parts}
    well_formed = all(re.fullmatch(r"\w+", name) and equals for name, equals, _ in parts)
    if len(fields) != len(parts) or not well_formed:
        raise ValueError("is not a connection string, of the form name=value;name=value")
    return fields


def _base64(text: str, name: str) -> str:
    try:
        base64.b64decode(text or "-", validate=True)
    except binascii.Error:
        raise ValueError(f"has no {name}=, a base64 text") from None
    return text


def _acs_connection_endpoint(text: str) -> str:
    return _acs_origin(_fields(text).get("endpoint", ""))


def _acs_connection_key(text: str) -> str:
    return _base64(_fields(text).get("accesskey", ""), "accesskey")


def _table_endpoint(text: str) -> str:
    parts = _split(text)
    if parts.scheme != "https":
        raise ValueError("is not https, which a managed identity needs")
    if parts.hostname in LOOPBACK_HOSTS:
        return text.rstrip("/")
    if not TABLE_HOST.fullmatch(_origin(text)[0]):
        raise ValueError("is not a Table endpoint (https://*.table.core.windows.net)")
    return text.rstrip("/")


def _table_connection(text: str) -> str:
    if text.lower().removesuffix(";") == "usedevelopmentstorage=true":
        return "UseDevelopmentStorage=true"  # The SDK takes it without a semicolon only.
    fields = _fields(text)
    _base64(fields.get("accountkey", ""), "AccountKey")
    suffix = fields.get("endpointsuffix", "core.windows.net")
    default = f"https://{fields.get('accountname')}.table.{suffix}"
    endpoint = _split(fields.get("tableendpoint", default))
    if endpoint.hostname in LOOPBACK_HOSTS:
        return text
    if {endpoint.scheme, fields.get("defaultendpointsprotocol", "https")} != {"https"}:
        raise ValueError("is not https")
    if not TABLE_HOST.fullmatch(endpoint.netloc):
        raise ValueError("is not one of a storage account")
    return text


def _acs_scopes(text: str) -> tuple[str, ...]:
    scopes = tuple(dict.fromkeys(_items(text)))
    if not scopes or not ACS_SCOPES.issuperset(scopes):
        raise ValueError(f"is not a list of {', '.join(sorted(ACS_SCOPES))}")
    return scopes


def _share(text: str) -> float:
    if not re.fullmatch(r"1(\.0*)?|0?\.[0-9]*[1-9][0-9]*", text):
        raise ValueError("is not above 0 and at most 1")
    return float(text)


def _boolean(text: str) -> bool:
    if text.lower() not in {"true", "false"}:
        raise ValueError("is neither true nor false")
    return text.lower() == "true"
