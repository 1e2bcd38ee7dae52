"""The app settings, read and checked all at once."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar, cast

from shared.certificates import client_certificate
from shared.endpoints import (
    GRAPH_HOSTS,
    PUBLIC_CLOUD,
    TEAMS_CLOUDS,
    TEAMS_RESOURCES,
    TOKEN_EXCHANGE_AUDIENCES,
    V1_ISSUERS,
    acs_connection_endpoint,
    acs_connection_key,
    acs_endpoint,
    blob_connection_string,
    blob_endpoint,
    entra_authority,
    external_tenant,
    table_connection_string,
    table_endpoint,
)
from shared.exchange_kinds import entra_kind, entra_scope_names, exchange_names, teams_kind
from shared.identifiers import APP_ROLE, CONSUMERS, GUID
from shared.microsoft_apps import is_microsofts
from shared.trust_policy import Allowed, PolicyError, trust_policy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from shared.exchange_kinds import ExchangeKind
    from shared.trust_policy import TrustPolicy

ACS_SCOPES = frozenset({"chat", "voip", "chat.join", "chat.join.limited", "voip.join"})
LIFETIME_MINUTES = range(60, 1440 + 1)  # What ACS takes.
TOUCH_INTERVAL = timedelta(hours=24)  # How stale `lastUsedOn` may become before it is written.
# Entra keeps deleted users for 30 days; the runs of five days can find each of them.
# https://learn.microsoft.com/entra/fundamentals/users-restore
MAX_DELETED = timedelta(days=25)
# The longest token, the longest time that a use may go unrecorded, and a day to spare.
MIN_IDLE = timedelta(minutes=LIFETIME_MINUTES[-1]) + TOUCH_INTERVAL + timedelta(days=1)

ANY_TENANT = "*"
Value = TypeVar("Value")


class SettingsError(ValueError):
    """The settings are not valid; `problems` says what is wrong with each."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(self.problems))


@dataclass(frozen=True, slots=True)
class EntraSettings:
    """Which Entra tokens are accepted."""

    client_id: str
    tenant_ids: frozenset[str] | None  # None: every organisation's.
    audiences: frozenset[str]
    required_scope: str
    allowed_client_ids: frozenset[str]
    admin_role: str
    operator_tenant_id: str | None  # Whose administrators may administer every tenant.
    authority: str  # `https://login.microsoftonline.com`, without a trailing slash.

    @property
    def v1_audiences(self) -> frozenset[str]:
        """What v1 tokens for this service may name. Those of v2 name the client id alone."""
        return self.audiences | {self.client_id}

    @property
    def v1_issuer(self) -> str | None:
        """The beginning of every v1 issuer: `https://sts.windows.net` in the public cloud.

        None: v1 tokens are refused. That is so for External ID, since Microsoft documents none.
        """
        host = self.authority.partition("://")[2]
        if external_tenant(self.authority):
            return None
        return V1_ISSUERS.get(host, V1_ISSUERS[PUBLIC_CLOUD])

    @property
    def graph(self) -> str:
        """The origin of Microsoft Graph; the local stack serves it together with Entra."""
        host = self.authority.partition("://")[2]
        is_real = host in GRAPH_HOSTS or external_tenant(self.authority)
        return self.graph_audience if is_real else self.authority

    @property
    def graph_audience(self) -> str:
        """The audience of tokens for Microsoft Graph, in the local stack that of the real one."""
        host = self.authority.partition("://")[2]
        return f"https://{GRAPH_HOSTS.get(host, GRAPH_HOSTS[PUBLIC_CLOUD])}"

    @property
    def token_exchange_audience(self) -> str:
        """The audience of the managed identity's tokens that prove that the broker is itself."""
        return self._of_cloud(TOKEN_EXCHANGE_AUDIENCES)

    @property
    def teams_resource(self) -> str:
        """The URI of ACS's app for Teams users."""
        return self._of_cloud(TEAMS_RESOURCES)

    @property
    def teams_cloud(self) -> str:
        """The cloud in the ids of Teams users, such as `orgid` in `8:orgid:...`."""
        return self._of_cloud(TEAMS_CLOUDS)

    def _of_cloud(self, by_host: Mapping[str, str]) -> str:
        host = (self.authority or "").partition("://")[2]  # None, if that setting is wrong.
        return by_host.get(host, by_host[PUBLIC_CLOUD])

    @property
    def keys_of(self) -> str:
        """Whose signing keys are fetched: those of the one tenant, or of all organisations."""
        if self.tenant_ids is not None and len(self.tenant_ids) == 1:
            return next(iter(self.tenant_ids))
        return "organizations"


@dataclass(frozen=True, slots=True)
class AcsSettings:
    """The ACS resource that issues tokens, and the limits on the tokens."""

    endpoint: str
    access_key: str | None = field(repr=False)  # None: opened by managed identity.
    scopes: tuple[str, ...]
    lifetime: timedelta
    max_lifetime: timedelta


@dataclass(frozen=True, slots=True)
class ExchangeSettings:
    """Which exchanges there are, and how the broker's registration proves itself to Entra."""

    entra: ExchangeKind | None  # None: off.
    teams: ExchangeKind | None
    # Neither of the two: with a token of the managed identity.
    client_secret: str | None = field(repr=False)
    client_certificate: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class MappingsSettings:
    """Where the identity mappings are kept: an endpoint or a connection string."""

    endpoint: str | None
    connection_string: str | None = field(repr=False)
    table: str


@dataclass(frozen=True, slots=True)
class PruneSettings:
    """When an identity counts as idle, and the limits on removing identities."""

    idle: timedelta
    dry_run: bool
    max_share: float
    max_deletes: int


@dataclass(frozen=True, slots=True)
class BackupSettings:
    """Where backups are kept: an endpoint or a connection string, and a container there."""

    endpoint: str | None
    connection_string: str | None = field(repr=False)
    container: str


@dataclass(frozen=True, slots=True)
class LeaversSettings:
    """When people who were deleted from Entra count as gone, and the limits on how many may be."""

    after: timedelta
    tenant_id: str  # Of the managed identity, the only one whose directory it can read.
    max_share: float
    max_people: int


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings, checked."""

    entra: EntraSettings
    acs: AcsSettings
    exchanges: ExchangeSettings
    policy: TrustPolicy | None  # None: the other settings decide alone.
    mappings: MappingsSettings
    prune: PruneSettings
    backup: BackupSettings | None  # None: there are no backups.
    leavers: LeaversSettings | None  # None: Microsoft Graph is not asked.
    managed_identity_client_id: str | None

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Settings:
        """Read the settings from a mapping such as `os.environ`.

        Raises:
            SettingsError: at least one is missing or wrong; the error names them all.
        """
        reader = _Reader(env)
        entra, acs = _entra(reader), _acs(reader)
        exchanges = _exchanges(reader, entra)
        settings = cls(
            entra=entra,
            acs=acs,
            exchanges=exchanges,
            policy=_policy(reader, entra, acs, exchanges),
            mappings=_mappings(reader),
            prune=_prune(reader),
            backup=_backup(reader),
            leavers=_leavers(reader),
            managed_identity_client_id=reader.read("AZURE_CLIENT_ID", _guid, "") or None,
        )
        if reader.problems:
            raise SettingsError(reader.problems)
        return settings


class _Reader:
    """Reads settings one by one, and collects what is wrong with them."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env
        self.problems: list[str] = []

    def text(self, name: str) -> str:
        return self._env.get(name, "").strip()

    def read(self, name: str, parse: Callable[[str], Value], default: str | None = None) -> Value:
        """Parse a setting or, if it is not set, its default; without a default it is required.

        A value returned after a problem is never used, because `from_env` raises.
        """
        text = self.text(name) or default
        if text is None:
            self.problems.append(f"{name} is missing")
            return cast("Value", None)
        try:
            return parse(text)
        except PolicyError as exc:
            self.problems += [f"{name} {problem}" for problem in exc.problems]
            return cast("Value", None)
        except ValueError as exc:
            self.problems.append(f"{name} {exc}")
            return cast("Value", None)

    def optional(self, name: str, parse: Callable[[str], Value]) -> Value | None:
        """Parse a setting; None if it is not set."""
        return self.read(name, parse) if self.text(name) else None

    def one_of(self, name: str, other: str) -> bool:
        """Return whether the first of two settings is set; note a problem unless exactly one is."""
        if bool(self.text(name)) == bool(self.text(other)):
            self.problems.append(f"set either {name} or {other}")
        return bool(self.text(name))


def _matching(pattern: str, what: str) -> Callable[[str], str]:
    """Return a parser that accepts text of a given form."""

    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"is not {what}")
        return text

    return parse


def _count(least: int, most: int) -> Callable[[str], int]:
    """Return a parser for whole numbers in a range."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
            raise ValueError(f"is not a whole number from {least} to {most}")
        return int(text)

    return parse


def _duration(unit: timedelta, least: int, most: int) -> Callable[[str], timedelta]:
    """Return a parser for whole numbers of a unit of time."""
    count = _count(least, most)
    return lambda text: unit * count(text)


# scope-token, RFC 6749 section 3.3.
_scope_token = _matching(r"[\x21\x23-\x5b\x5d-\x7e]+", "one scope, such as access_as_user")
_app_role = _matching(APP_ROLE.pattern, "an app role, such as Mappings.Admin")
# Table Storage allows 63 characters, and the ledger's name has eight more than this one.
_table_name = _matching(
    r"[A-Za-z][A-Za-z0-9]{2,54}", "a table name: a letter, then 2 to 54 letters or digits"
)
# https://learn.microsoft.com/rest/api/storageservices/naming-and-referencing-containers--blobs--and-metadata
_container_name = _matching(
    r"(?=.{3,63}$)[a-z0-9]+(-[a-z0-9]+)*",
    "a container name: 3 to 63 lower-case letters, digits and single hyphens",
)
_ncrontab = _matching(
    r"[0-9A-Za-z*/,-]+( +[0-9A-Za-z*/,-]+){5}",
    "an NCRONTAB expression of six fields, such as 0 0 3 * * *",
)
_lifetime = _duration(timedelta(minutes=1), LIFETIME_MINUTES[0], LIFETIME_MINUTES[-1])


def _entra(reader: _Reader) -> EntraSettings:
    client_id = reader.read("ENTRA_CLIENT_ID", _own_app)
    tenant_ids = reader.read("ENTRA_TENANT_IDS", _tenants)
    operator_tenant_id = reader.read("ENTRA_OPERATOR_TENANT_ID", _guid, "") or None
    served = {operator_tenant_id} - {CONSUMERS} if tenant_ids is None else tenant_ids
    if operator_tenant_id and operator_tenant_id not in served:
        reader.problems.append("ENTRA_OPERATOR_TENANT_ID is not one of ENTRA_TENANT_IDS")
    authority = reader.read("ENTRA_AUTHORITY_HOST", entra_authority, f"https://{PUBLIC_CLOUD}")
    external = external_tenant(authority or "")
    if external and tenant_ids != frozenset({external}):
        reader.problems.append("ENTRA_AUTHORITY_HOST names a tenant that is not ENTRA_TENANT_IDS")
    return EntraSettings(
        client_id=client_id,
        tenant_ids=tenant_ids,
        audiences=reader.read("ENTRA_AUDIENCES", _audiences, f"api://{client_id}"),
        required_scope=reader.read("ENTRA_REQUIRED_SCOPE", _scope_token, "access_as_user"),
        allowed_client_ids=reader.read("ENTRA_ALLOWED_CLIENT_IDS", _guids, ""),
        admin_role=reader.read("ENTRA_ADMIN_ROLE", _app_role, "Mappings.Admin"),
        operator_tenant_id=operator_tenant_id,
        authority=authority,
    )


def _acs(reader: _Reader) -> AcsSettings:
    endpoint, access_key = "", None
    if reader.one_of("ACS_ENDPOINT", "ACS_CONNECTION_STRING"):
        endpoint = reader.read("ACS_ENDPOINT", acs_endpoint)
    elif reader.text("ACS_CONNECTION_STRING"):
        endpoint = reader.read("ACS_CONNECTION_STRING", acs_connection_endpoint)
        access_key = reader.read("ACS_CONNECTION_STRING", acs_connection_key)
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


def _exchanges(reader: _Reader, entra: EntraSettings) -> ExchangeSettings:
    names = (
        reader.read("ACS_EXCHANGES", lambda text: exchange_names(_items(text)), "") or frozenset()
    )
    scopes = reader.read("ACS_ENTRA_SCOPES", lambda text: entra_scope_names(_items(text)), "VoIP")
    certificate = reader.optional("ENTRA_CLIENT_CERTIFICATE", client_certificate)
    secret = reader.text("ENTRA_CLIENT_SECRET") or None
    if reader.text("ENTRA_CLIENT_CERTIFICATE") and secret:
        reader.problems.append("set at most one of ENTRA_CLIENT_CERTIFICATE, ENTRA_CLIENT_SECRET")
    if names and external_tenant(entra.authority or ""):
        reader.problems.append("ACS_EXCHANGES needs people of a workforce tenant, not External ID")
    for_teams = next(iter(names - {"entra"}), None)
    return ExchangeSettings(
        entra=entra_kind(scopes) if scopes and "entra" in names else None,
        teams=teams_kind(for_teams, entra.teams_resource) if for_teams else None,
        client_secret=secret,
        client_certificate=certificate,
    )


def _policy(
    reader: _Reader, entra: EntraSettings, acs: AcsSettings, exchanges: ExchangeSettings
) -> TrustPolicy | None:
    kinds = (exchanges.entra, exchanges.teams)
    # What is missing here is a problem of its own, and must not hide those of the policy.
    longest = acs.max_lifetime or timedelta(minutes=LIFETIME_MINUTES[-1])
    allowed = Allowed(
        tenants=entra.tenant_ids,
        clients=entra.allowed_client_ids or None,
        scopes=frozenset(acs.scopes or ACS_SCOPES),
        minutes=range(LIFETIME_MINUTES[0], longest // timedelta(minutes=1) + 1),
        exchanges=frozenset(kind.name for kind in kinds if kind),
    )
    return reader.optional("TRUST_POLICY", lambda text: trust_policy(text, allowed))


def _mappings(reader: _Reader) -> MappingsSettings:
    endpoint, connection_string = None, None
    if reader.one_of("MAPPINGS_TABLE_ENDPOINT", "MAPPINGS_CONNECTION_STRING"):
        endpoint = reader.read("MAPPINGS_TABLE_ENDPOINT", table_endpoint)
    elif reader.text("MAPPINGS_CONNECTION_STRING"):
        connection_string = reader.read("MAPPINGS_CONNECTION_STRING", table_connection_string)
    return MappingsSettings(
        endpoint=endpoint,
        connection_string=connection_string,
        table=reader.read("MAPPINGS_TABLE", _table_name, "IdentityMappings"),
    )


def _prune(reader: _Reader) -> PruneSettings:
    # The timer's binding reads the schedule itself, as %PRUNE_SCHEDULE%; here it is only checked.
    reader.read("PRUNE_SCHEDULE", _ncrontab, "0 0 3 * * *")
    return PruneSettings(
        idle=reader.read(
            "PRUNE_IDLE_DAYS", _duration(timedelta(days=1), MIN_IDLE.days, 36500), "90"
        ),
        dry_run=reader.read("PRUNE_DRY_RUN", _boolean, "false"),
        max_share=reader.read("PRUNE_MAX_SHARE", _share, "0.2"),
        max_deletes=reader.read("PRUNE_MAX_DELETES", _count(1, 1_000_000), "5000"),
    )


def _backup(reader: _Reader) -> BackupSettings | None:
    # Read by the timer's binding, as PRUNE_SCHEDULE is.
    reader.read("BACKUP_SCHEDULE", _ncrontab, "0 30 1 * * *")
    container = reader.read("BACKUP_CONTAINER", _container_name, "mappings-backup")
    endpoint = reader.optional("BACKUP_BLOB_ENDPOINT", blob_endpoint)
    connection_string = reader.optional("BACKUP_CONNECTION_STRING", blob_connection_string)
    if reader.text("BACKUP_BLOB_ENDPOINT") and reader.text("BACKUP_CONNECTION_STRING"):
        reader.problems.append("set at most one of BACKUP_BLOB_ENDPOINT, BACKUP_CONNECTION_STRING")
    if endpoint is None and connection_string is None:
        return None
    return BackupSettings(endpoint, connection_string, container)


def _leavers(reader: _Reader) -> LeaversSettings | None:
    tenant_id = reader.read("AZURE_TENANT_ID", _guid, "")
    max_people = reader.read("PRUNE_MAX_DELETED_USERS", _count(1, 1_000_000), "500")
    if not reader.text("PRUNE_DELETED_USERS_AFTER_DAYS"):
        return None
    if not reader.text("AZURE_TENANT_ID"):
        reader.problems.append("AZURE_TENANT_ID is missing: PRUNE_DELETED_USERS_AFTER_DAYS is set")
    return LeaversSettings(
        after=reader.read(
            "PRUNE_DELETED_USERS_AFTER_DAYS", _duration(timedelta(days=1), 1, MAX_DELETED.days)
        ),
        tenant_id=tenant_id,
        max_share=reader.read("PRUNE_MAX_SHARE", _share, "0.2"),
        max_people=max_people,
    )


def _guid(text: str) -> str:
    if text and not GUID.fullmatch(text.lower()):
        raise ValueError("is not a GUID")
    return text.lower()


def _own_app(text: str) -> str:
    if is_microsofts(text):
        raise ValueError("is an app of Microsoft's, not a registration of yours")
    return _guid(text)


def _items(text: str) -> tuple[str, ...]:
    items = tuple(item.strip() for item in text.split(",") if item.strip())
    if text and not items:  # Otherwise it would do as if the setting were not there.
        raise ValueError("has nothing but commas")
    return items


def _audiences(text: str) -> frozenset[str]:
    # A token for Microsoft Graph that some other app was given would open the broker, too.
    if foreign := [item for item in _items(text) if is_microsofts(item)]:
        raise ValueError(f"has an audience of Microsoft's own, not of yours: {', '.join(foreign)}")
    return frozenset(_items(text))


def _guids(text: str) -> frozenset[str]:
    return frozenset(_guid(item) for item in _items(text))


def _tenants(text: str) -> frozenset[str] | None:
    if text == ANY_TENANT:
        return None
    tenants = frozenset(_items(text))
    if not all(GUID.fullmatch(tenant.lower()) for tenant in tenants):
        raise ValueError("is neither a list of tenant ids (GUIDs) nor *")
    if CONSUMERS in _guids(text):
        raise ValueError("names the tenant of personal accounts, which is never served")
    return _guids(text)


def _acs_scopes(text: str) -> tuple[str, ...]:
    scopes = tuple(dict.fromkeys(_items(text)))
    if not ACS_SCOPES.issuperset(scopes):
        raise ValueError(f"is not a list of {', '.join(sorted(ACS_SCOPES))}")
    return scopes


def _share(text: str) -> float:
    if not re.fullmatch(r"1(\.0*)?|0?\.[0-9]*[1-9][0-9]*", text):
        raise ValueError("is not a number above 0 and at most 1")
    return float(text)


def _boolean(text: str) -> bool:
    if text.lower() not in {"true", "false"}:
        raise ValueError("is neither true nor false")
    return text.lower() == "true"
