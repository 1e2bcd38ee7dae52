"""Proxies in front of Azurite's tables and blobs that fail on request, as Azure Storage can."""

from __future__ import annotations

from abc import ABC, abstractmethod
from email.utils import format_datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from aiohttp import ClientSession, DummyCookieJar, TCPConnector, web
from multidict import CIMultiDict
from yarl import URL

from local.serving.faults import Faults, middleware

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable, Iterable
    from datetime import datetime

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
# These headers concern one connection, so they are not passed on.
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}
SESSION = web.AppKey("session", ClientSession)


class StorageProxy(ABC):
    """Passes requests on unchanged, so that signatures and tokens stay valid.

    Tests may set `clock`: the time that the answers' `Date` then has.

    Args:
        upstream: the endpoint of one of Azurite's services.
        tls: the certificates to trust, if the endpoint is https.
    """

    def __init__(self, upstream: str, *, tls: ssl.SSLContext | None = None) -> None:
        self.faults = Faults()
        self.url = ""
        self.clock: Callable[[], datetime] | None = None
        parts = urlsplit(upstream)
        self._upstream = f"{parts.scheme}://{parts.netloc}"
        self._account_path = parts.path
        self._tls = tls

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
        app.add_routes(self.faults.routes())
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

    async def _pass_on(self, request: web.Request) -> web.Response:
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
    """A proxy in front of tables.

    Its operations are `table_create`, `table_query`, `table_read`, `table_insert`, `table_update`,
    `table_delete` and `table_batch`.
    """

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
        message = {"lang": "en-US", "value": f"{code}, on request."}
        return web.json_response(
            {"odata.error": {"code": code, "message": message}},
            status=status,
            headers={"x-ms-error-code": code},
        )


class BlobProxy(StorageProxy):
    """A proxy in front of blobs.

    Its operations are `blob_block` (one block is uploaded), `blob_commit` (the blocks become a
    blob) and `blob_read`.
    """

    def _operation(self, request: web.Request) -> str | None:
        if not request.rel_url.raw_path.startswith(self._account_path + "/"):
            return None
        if request.method == "PUT":
            operations = {"block": "blob_block", "blocklist": "blob_commit"}
            return operations.get(request.query.get("comp", ""))
        return "blob_read" if request.method in {"GET", "HEAD"} else None

    def _render(self, status: int) -> web.Response:
        code = BLOB_CODES.get(status, "InternalError")
        return web.Response(
            status=status,
            text=f"<?xml version='1.0' encoding='utf-8'?><Error><Code>{code}</Code>"
            f"<Message>{code}, on request.</Message></Error>",
            content_type="application/xml",
            headers={"x-ms-error-code": code},
        )


def _end_to_end(headers: Iterable[tuple[str, str]]) -> CIMultiDict[str]:
    return CIMultiDict(pair for pair in headers if pair[0].lower() not in HOP_BY_HOP)
