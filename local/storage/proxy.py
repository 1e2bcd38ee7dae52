"""Proxies in front of Azurite's tables and blobs that fail on request, as Azure Storage can."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from datetime import UTC, datetime
from email.utils import format_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import urlsplit

from aiohttp import ClientSession, DummyCookieJar, TCPConnector, web
from multidict import CIMultiDict
from yarl import URL

from local.entra.directory import STORAGE
from local.serving.faults import Faults, middleware
from local.serving.roles import Roles

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping

    VerifyBearer = Callable[[str], Mapping[str, object]]

TABLE_CODES = {
    400: "InvalidInput",
    401: "NoAuthenticationInformation",
    403: "AuthorizationPermissionMismatch",
    404: "ResourceNotFound",
    409: "EntityAlreadyExists",
    412: "UpdateConditionNotSatisfied",
    500: "InternalError",
    503: "ServerBusy",
}
BLOB_CODES = {
    401: "NoAuthenticationInformation",
    403: "AuthorizationPermissionMismatch",
    404: "ContainerNotFound",
    409: "BlobAlreadyExists",
    412: "ConditionNotMet",
    503: "ServerBusy",
}
# Of the token's audience, as the SDKs ask for it.
AUDIENCES = {STORAGE.client_id, *STORAGE.uris, *(f"{uri}/" for uri in STORAGE.uris)}
UNKNOWN = (
    "Server failed to authenticate the request. Please refer to the information in the "
    "www-authenticate header."
)
DENIED = "This request is not authorized to perform this operation using this permission."
# These headers concern one connection, so they are not passed on.
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}
SESSION = web.AppKey("session", ClientSession)


class StorageProxy(ABC):
    """Passes requests on unchanged, so that signatures and tokens stay valid.

    Tests may set `clock`: the time that the answers' `Date` then has.

    Args:
        upstream: the endpoint of one of Azurite's services.
        tls: the certificates to trust, if the endpoint is https.
        verify_bearer: returns the claims of a valid Entra token, and raises ValueError for others.
            None: a token is passed on unchecked, to Azurite, which takes any.
    """

    operations: ClassVar[frozenset[str]]

    def __init__(
        self,
        upstream: str,
        *,
        tls: ssl.SSLContext | None = None,
        verify_bearer: VerifyBearer | None = None,
    ) -> None:
        self.faults = Faults(self.operations)
        self.roles = Roles()
        self.url = ""
        self.clock: Callable[[], datetime] | None = None
        parts = urlsplit(upstream)
        self._upstream = f"{parts.scheme}://{parts.netloc}"
        self._account_path = parts.path
        self._tls = tls
        self._verify_bearer = verify_bearer

    @property
    def endpoint(self) -> str:
        """Return the endpoint to use instead of Azurite's own."""
        return self.url + self._account_path

    def application(self) -> web.Application:
        """Return the aiohttp application."""
        app = web.Application(
            middlewares=[middleware(self.faults, self._operation, self._render)],
            client_max_size=0,  # The service has its own limits.
        )
        app.cleanup_ctx.append(self._session)
        app.add_routes([*self.faults.routes(), *self.roles.routes()])
        app.router.add_route("*", "/{path:.*}", self._pass_on)
        return app

    async def _session(self, app: web.Application) -> AsyncIterator[None]:
        # Azurite closes idle connections after 5 s, so none may be used again after that.
        connector = TCPConnector(keepalive_timeout=2)
        async with ClientSession(
            connector=connector, auto_decompress=False, cookie_jar=DummyCookieJar()
        ) as session:
            app[SESSION] = session
            yield

    @abstractmethod
    def _operation(self, request: web.Request) -> str | None:
        """Return the name of a request's operation; None for those that never fail."""

    @abstractmethod
    def _render(self, status: int) -> web.Response:
        """Return the service's own error answer for a status."""

    @abstractmethod
    def _answer(self, status: int, code: str, message: str) -> web.Response:
        """Return an error answer with a code and a message."""

    def _refusal(self, request: web.Request) -> web.Response | None:
        """Return the answer to a token that does not open the account; a key does."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if self._verify_bearer is None or scheme != "Bearer":
            return None
        try:
            claims = self._verify_bearer(token)
        except ValueError:
            claims = {}
        if claims.get("aud") not in AUDIENCES:
            return self._answer(HTTPStatus.UNAUTHORIZED, "InvalidAuthenticationInfo", UNKNOWN)
        if not self.roles.allow(claims):
            return self._answer(HTTPStatus.FORBIDDEN, "AuthorizationPermissionMismatch", DENIED)
        return None

    async def _pass_on(self, request: web.Request) -> web.Response:
        if refusal := self._refusal(request):
            return refusal
        sent = request.app[SESSION].request(
            request.method,
            URL(self._upstream + request.raw_path, encoded=True),
            headers=_end_to_end(request.headers.items()),
            skip_auto_headers={"Accept", "Accept-Encoding", "Content-Type", "User-Agent"},
            data=await request.read(),
            ssl=self._tls or True,
            allow_redirects=False,
        )
        async with sent as answer:
            headers = _end_to_end(answer.headers.items())
            if self.clock is not None:
                headers["Date"] = format_datetime(self.clock(), usegmt=True)
            return web.Response(status=answer.status, body=await answer.read(), headers=headers)


class TableProxy(StorageProxy):
    """A proxy in front of tables."""

    operations = frozenset(
        {"table_create", "table_query", "table_read", "table_insert"}
        | {"table_update", "table_delete", "table_batch"}
    )

    def _operation(self, request: web.Request) -> str | None:
        path = request.rel_url.raw_path
        if not path.startswith(self._account_path + "/"):
            return None
        resource = path.removeprefix(self._account_path + "/")
        if resource.startswith("Tables") and request.method != "GET":
            return "table_create" if request.method == "POST" else None
        if resource == "$batch":
            return "table_batch"
        one_entity = "(PartitionKey=" in resource
        operations = {
            "GET": "table_read" if one_entity else "table_query",
            "POST": "table_insert",
            "DELETE": "table_delete",
        }
        return operations.get(request.method, "table_update")

    def _render(self, status: int) -> web.Response:
        code = TABLE_CODES.get(status, "InternalError")
        return self._answer(status, code, f"{code}, on request.")

    def _answer(self, status: int, code: str, message: str) -> web.Response:
        error = {"code": code, "message": {"lang": "en-US", "value": _traced(message)}}
        return web.json_response(
            {"odata.error": error},
            status=status,
            headers={"x-ms-error-code": code},
        )


class BlobProxy(StorageProxy):
    """A proxy in front of blobs.

    `blob_block` uploads one block, and `blob_commit` makes the blocks a blob.
    """

    operations = frozenset({"blob_block", "blob_commit", "blob_read"})

    def _operation(self, request: web.Request) -> str | None:
        if not request.rel_url.raw_path.startswith(self._account_path + "/"):
            return None
        if request.method == "PUT":
            operations = {"block": "blob_block", "blocklist": "blob_commit"}
            return operations.get(request.query.get("comp", ""))
        return "blob_read" if request.method in {"GET", "HEAD"} else None

    def _render(self, status: int) -> web.Response:
        code = BLOB_CODES.get(status, "InternalError")
        return self._answer(status, code, f"{code}, on request.")

    def _answer(self, status: int, code: str, message: str) -> web.Response:
        return web.Response(
            status=status,
            text=f"<?xml version='1.0' encoding='utf-8'?><Error><Code>{code}</Code>"
            f"<Message>{_traced(message)}</Message></Error>",
            content_type="application/xml",
            headers={"x-ms-error-code": code},
        )


def _traced(message: str) -> str:
    now = datetime.now(UTC)
    return f"{message}\nRequestId:{uuid.uuid4()}\nTime:{now:%Y-%m-%dT%H:%M:%S}.0000000Z"


def _end_to_end(headers: Iterable[tuple[str, str]]) -> CIMultiDict[str]:
    return CIMultiDict(pair for pair in headers if pair[0].lower() not in HOP_BY_HOP)
