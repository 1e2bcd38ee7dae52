"""The keys of the local Entra, and the tokens that it signs with them.

The claims are those of Entra's access token reference; those that only Entra itself can read
(`aio`, `rh`, `uti`) have random values.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from local.entra.directory import BROKER, WEB_APP
from local.entra.objects import ManagedIdentity
from local.entra.state import set_up

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from local.entra.objects import App, Tenant, User
    from local.entra.state import Directory

    JWK = dict[str, Any]

CLOUD = "microsoftonline.com"
BACKDATED = timedelta(minutes=5)  # As in Entra, to allow for slow clocks.
KEYS_AT_START = 2
PUBLIC_CLIENT, CLIENT_SECRET, CLIENT_ASSERTION = "0", "1", "2"  # The values of `azpacr`.


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key, with the key id and the JWK members that are published for it."""

    private_key: rsa.RSAPrivateKey = field(repr=False)
    kid: str
    members: Mapping[str, object]

    @classmethod
    def generate(cls) -> SigningKey:
        """Make a key like Entra's: 2048 bits, with the thumbprint of its certificate as key id."""
        private_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Local Entra, worthless")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder(name, name, private_key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now)
            .not_valid_after(now + timedelta(days=30))
            .sign(private_key, hashes.SHA256())
        )
        # RFC 7517, 4.8: x5t is a SHA-1 thumbprint. Entra uses it as the key id, too.
        thumbprint = base64url(certificate.fingerprint(hashes.SHA1()))  # noqa: S303 - see above
        chain = [base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()]
        return cls(private_key, thumbprint, {"x5t": thumbprint, "x5c": chain})

    def jwk(self, **members: object) -> JWK:
        """Return the public key with these members, which its own override; None leaves one out."""
        numbers = self.private_key.public_key().public_numbers()
        jwk = {
            "kty": "RSA",
            "use": "sig",
            "kid": self.kid,
            "n": _base64url_number(numbers.n),
            "e": _base64url_number(numbers.e),
            **members,
            **self.members,
        }
        return _without_none(jwk)


class TokenIssuer:
    """Issues tokens to the users and apps of a directory, and publishes the signing keys.

    Unless it is given keys, it makes its own, which takes a moment. Unless it is given a directory,
    everything is set up in its own.
    """

    def __init__(
        self, directory: Directory | None = None, *, keys: Iterable[SigningKey] = ()
    ) -> None:
        self.directory = directory or set_up()
        self.url = ""
        self._keys = list(keys)

    @property
    def keys(self) -> list[SigningKey]:
        """The published keys, made on first use. The first one signs."""
        if not self._keys:
            self._keys.extend(SigningKey.generate() for _ in range(KEYS_AT_START))
        return self._keys

    def roll_keys(self, keep: int = 1, *, new: SigningKey | None = None) -> str:
        """Sign with a new key from now on, keep only `keep` older ones, and return the new id."""
        self._keys = [new or SigningKey.generate(), *self.keys[:keep]]
        return self._keys[0].kid

    def publish_key(self, private_key: rsa.RSAPrivateKey, *, kid: str, **members: object) -> None:
        """Publish a key that signs only on request; a JWK member that is None is left out."""
        self.keys.append(SigningKey(private_key, kid, members))

    def withdraw_key(self, kid: str) -> None:
        """Stop publishing a key."""
        self._keys = [key for key in self.keys if key.kid != kid]

    def key_set(self, tenant: Tenant | None, *, version: int = 2) -> dict[str, list[JWK]]:
        """Return the key document of a tenant, or of all organisations."""
        if version == 1:
            return {"keys": [key.jwk() for key in self.keys]}
        issuer = self.issuer(tenant.tenant_id if tenant else "{tenantid}")
        keys = [key.jwk(issuer=issuer, cloud_instance_name=CLOUD) for key in self.keys]
        return {"keys": keys}

    def issuer(self, tenant_id: str, *, version: int = 2) -> str:
        """Return the issuer of a tenant's tokens; in version 1, the real Entra's is used."""
        v1 = f"https://sts.windows.net/{tenant_id}/"
        return v1 if version == 1 else f"{self.url}/{tenant_id}/v2.0"

    def issue_access_token(  # noqa: PLR0913 - each is one thing that a token can be asked to be
        self,
        user: str | None = "ada@contoso.example",
        *,
        client: App = WEB_APP,
        resource: App = BROKER,
        audience: str | None = None,
        scopes: tuple[str, ...] | None = None,
        tenant: Tenant | None = None,
        authentication: str | None = None,
        version: int | None = None,
        lifetime: timedelta | None = None,
        claims: Mapping[str, object] | None = None,
        header: Mapping[str, object] | None = None,
        key: rsa.RSAPrivateKey | None = None,
    ) -> str:
        """Return an access token for a user at a client app, or for the app itself.

        Args:
            user: a user name; None for an app-only token.
            client: the app that the token is issued to.
            resource: the app that it is meant for.
            audience: the name by which the resource was requested; used in version 1.
            scopes: delegated permissions; by default, all that the resource has.
            tenant: the tenant of an app-only token; by default, the client's own.
            authentication: the value of `azpacr`.
            version: 1 or 2; by default, the one that the resource is registered for.
            lifetime: counted from now; by default random, 60 to 90 minutes, as in Entra.
            claims: claims to add or replace; None removes one.
            header: members of the header to add or replace; None removes one.
            key: signs instead of the current key.

        Raises:
            LookupError: there is no such user.
        """
        version = version or resource.token_version
        person = self._user(user)
        home = person.tenant if person else tenant or client.tenant
        if home is None:
            raise LookupError(f"{client.name} has no tenant")
        if authentication is None:
            authentication = PUBLIC_CLIENT if person else CLIENT_SECRET
        issued = self._issued_claims(home, lifetime, version=version)
        issued |= {"aud": resource.client_id if version > 1 else audience or _uri(resource)}
        issued |= _client_claims(client, authentication, version=version)
        if person:
            issued |= _user_claims(person, client, resource, version=version)
            issued["scp"] = " ".join(resource.scopes if scopes is None else scopes)
        else:
            issued |= self._app_claims(home, client, resource, version=version)
        holder = person.object_id if person else client.principal_in(home)
        issued["roles"] = self.directory.roles_at(resource, home, holder) or None
        if person and resource.group_claims:
            issued["groups"] = sorted(self.directory.groups_of(home.tenant_id, holder)) or None
        thumbprint = {"x5t": self.keys[0].kid} if version == 1 else {}
        return self.sign({**thumbprint, **(header or {})}, {**issued, **(claims or {})}, key=key)

    def issue_id_token(self, user: User, client: App, *, nonce: str = "") -> str:
        """Return an ID token, which tells the client app who signed in."""
        claims = self._issued_claims(user.tenant, timedelta(hours=1), version=2)
        claims |= {"aud": client.client_id, "nonce": nonce or None}
        return self.sign({}, claims | _user_claims(user, client, client, version=2))

    def sign(
        self,
        header: Mapping[str, object],
        claims: Mapping[str, object] | bytes,
        *,
        key: rsa.RSAPrivateKey | None = None,
    ) -> str:
        """Sign anything with RS256; members that are None are left out.

        Claims may be given as bytes, which need not be JSON.
        """
        current = self.keys[0]
        private_key = key or current.private_key
        kid = next((k.kid for k in self.keys if k.private_key is private_key), current.kid)
        first = _json({"typ": "JWT", "alg": "RS256", "kid": kid, **header})
        second = claims if isinstance(claims, bytes) else _json(claims)
        signed = f"{base64url(first)}.{base64url(second)}"
        signature = private_key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{base64url(signature)}"

    def verify(self, token: str) -> dict[str, Any]:
        """Return the claims of a token that this Entra issued and is valid now, for any audience.

        Raises:
            ValueError: it is not such a token; the cause is PyJWT's error, if there is one.
        """
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            key = next(key.private_key.public_key() for key in self.keys if key.kid == kid)
            options: Any = {"verify_aud": False, "require": ["exp", "iat", "nbf", "iss", "tid"]}
            claims: dict[str, Any] = jwt.decode(token, key, algorithms=["RS256"], options=options)
        except (jwt.PyJWTError, StopIteration) as exc:
            raise ValueError("not a valid token of this Entra") from exc
        tenant = self.directory.tenant(str(claims["tid"]))
        issuers = {self.issuer(tenant.tenant_id, version=v) for v in (1, 2)} if tenant else set()
        if claims["iss"] not in issuers:
            raise ValueError("iss is not the issuer of a known tenant")
        return claims

    def _user(self, user_name: str | None) -> User | None:
        user = self.directory.user(user_name) if user_name else None
        if user_name and user is None:
            raise LookupError(f"there is no user {user_name}")
        return user

    def _issued_claims(
        self, tenant: Tenant, lifetime: timedelta | None, *, version: int
    ) -> dict[str, Any]:
        now = int(time.time())
        issued_at = now - int(BACKDATED.total_seconds())
        return {
            "iss": self.issuer(tenant.tenant_id, version=version),
            "iat": issued_at,
            "nbf": issued_at,
            "exp": now + int((lifetime or usual_lifetime()).total_seconds()),
            "aio": secrets.token_urlsafe(48),
            "rh": f"1.{secrets.token_urlsafe(33)}.",
            "tid": tenant.tenant_id,
            "uti": secrets.token_urlsafe(16),
            "ver": f"{version}.0",
            "xms_ftd": secrets.token_urlsafe(32),
        }

    def _app_claims(
        self, tenant: Tenant, client: App, resource: App, *, version: int
    ) -> dict[str, Any]:
        principal = client.principal_in(tenant)
        claims: dict[str, Any] = {"oid": principal, "sub": principal}
        if version == 1:
            claims["idp"] = self.issuer(tenant.tenant_id, version=1)
        if version == 1 or "idtyp" in resource.optional_claims:
            claims["idtyp"] = "app"
        if isinstance(client, ManagedIdentity):
            claims["xms_mirid"] = client.resource_id
        return claims


def usual_lifetime() -> timedelta:
    """Return a random lifetime for an access token, 60 to 90 minutes, as in Entra."""
    return timedelta(seconds=3600 + secrets.randbelow(1800))


def base64url(value: bytes) -> str:
    """Return base64url without padding."""
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def _client_claims(client: App, authentication: str, *, version: int) -> dict[str, Any]:
    if version == 1:
        return {"acr": "1", "appid": client.client_id, "appidacr": authentication}
    return {"azp": client.client_id, "azpacr": authentication}


def _user_claims(user: User, client: App, resource: App, *, version: int) -> dict[str, Any]:
    # The subject is pairwise: each resource sees another one.
    pair = f"{resource.client_id} {user.object_id}"
    claims: dict[str, Any] = {
        "name": user.name,
        "oid": user.object_id,
        "sid": str(uuid.uuid5(uuid.UUID(user.object_id), client.client_id)),
        "sub": base64url(hashlib.sha256(pair.encode()).digest()),
    }
    if user.guest_of:
        claims["idp"] = f"https://sts.windows.net/{user.account.tenant.tenant_id}/"
    if "acct" in resource.optional_claims:
        claims["acct"] = 1 if user.guest_of else 0
    if version > 1:
        return claims | {"preferred_username": user.account.user_name}
    names = {"family_name": user.family_name, "given_name": user.given_name}
    upn = {} if user.guest_of else {"upn": user.user_name}
    logged_in = {"amr": ["pwd"], "ipaddr": "127.0.0.1", "unique_name": user.account.user_name}
    return claims | names | upn | logged_in


def _uri(resource: App) -> str:
    return next(iter(resource.uris), resource.client_id)


def _without_none(members: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in members.items() if value is not None}


def _json(members: Mapping[str, object]) -> bytes:
    return json.dumps(_without_none(members), separators=(",", ":")).encode()


def _base64url_number(number: int) -> str:
    return base64url(number.to_bytes((number.bit_length() + 7) // 8, "big"))
