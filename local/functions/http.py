"""Translates HTTP requests and answers between the host, its worker and a function."""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote

from aiohttp import web
from azure.functions.http import HttpRequestConverter, HttpResponseConverter
from azure.functions.meta import Datum

from local.functions.aspnet import joined

if TYPE_CHECKING:
    from collections.abc import Mapping

GATEWAY_PAGE = (
    "The specified CGI application encountered an error and the server terminated the process."
)


@dataclass(frozen=True, slots=True)
class Cors:
    """The allowed origins, from `Host` in local.settings.json."""

    origins: tuple[str, ...] = ()
    credentials: bool = False

    def is_preflight(self, request: web.Request) -> bool:
        """Return whether a request is a preflight, which the host itself answers."""
        asks = {"Origin", "Access-Control-Request-Method"} <= request.headers.keys()
        return bool(self.origins) and request.method == "OPTIONS" and asks

    def add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add the headers that let a page of an allowed origin read the answer."""
        origin = request.headers.get("Origin")
        any_origin = self.origins == ("*",)
        if self.origins and not any_origin:
            response.headers.add("Vary", "Origin")
        if origin is None or not (any_origin or origin in self.origins):
            return
        response.headers["Access-Control-Allow-Origin"] = "*" if any_origin else origin
        if self.credentials:
            response.headers["Access-Control-Allow-Credentials"] = "true"
        if self.is_preflight(request):
            asked = request.headers
            response.headers["Access-Control-Allow-Methods"] = asked[
                "Access-Control-Request-Method"
            ]
            if "Access-Control-Request-Headers" in asked:
                allowed = asked["Access-Control-Request-Headers"]
                response.headers["Access-Control-Allow-Headers"] = allowed


def http_request(request: web.Request, path: str, parameters: dict[str, str], body: bytes) -> Any:  # noqa: ANN401 - azure.functions.HttpRequest, from an SDK function without a type
    """Return the request as the worker passes it to a function."""
    # A percent sign that does not begin an escape is escaped, as by PathString.ToUriComponent.
    escaped = quote(re.sub("%(?![0-9A-Fa-f]{2})", "%25", path), safe="/!$&'()*+,;=:@%")
    query = request.rel_url.raw_query_string
    # The host leaves out empty parameters, since the worker does not ask for them.
    given = joined(parse_qsl(query))
    http = {
        "method": Datum(request.method, "string"),
        "url": Datum(f"{request.scheme}://{request.host}{escaped}{query and '?'}{query}", "string"),
        "headers": _strings(joined(request.headers.items())),
        "query": _strings(given),
        "params": _strings(parameters),
        "body": Datum(body, "bytes"),
    }
    return HttpRequestConverter.decode(Datum(http, "http"), trigger_metadata=None)


def _strings(values: Mapping[str, str]) -> dict[str, Datum]:
    return {name: Datum(value, "string") for name, value in values.items()}


def failure(status: int) -> web.Response:
    """Return the answer to a request that does not get to a function, or whose function failed.

    None is a problem document. 429 (HttpThrottleMiddleware in Azure/azure-functions-host) and 500
    (ExceptionMiddleware) have no body and no Retry-After. The rest are documented by what people
    got: 503 is HostAvailabilityCheckMiddleware's; 502 is the platform's, on Windows
    (https://github.com/Azure/azure-webjobs-sdk/issues/1536). How the front end of Flex Consumption
    puts it is documented nowhere.
    """
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        return web.Response(status=status, text="Function host is not running.")
    if status == HTTPStatus.BAD_GATEWAY:
        return web.Response(status=status, text=GATEWAY_PAGE, content_type="text/html")
    return web.Response(status=status)


def http_response(returned: object) -> web.Response:
    """Return the HTTP answer for a function's return value.

    Raises:
        Exception: the worker or the host would fail on the value, too.
    """
    datum = HttpResponseConverter.encode(returned, expected_type=None)
    if datum.type == "string":
        return web.Response(text=datum.value)
    http = datum.value
    response = web.Response(status=int(http["status_code"].value), body=http["body"].value)
    for name, datum in http["headers"].items():
        value = datum.value
        if not (value.isascii() and value.isprintable()):
            raise ValueError(f"invalid non-ASCII or control character in the header {name}")
        if name.lower() not in {"content-length", "transfer-encoding"}:  # The server's own.
            response.headers[name] = value
    for cookie in http["cookies"] or ():
        for morsel in cookie.values():
            response.headers.add("Set-Cookie", morsel.OutputString())
    return response
