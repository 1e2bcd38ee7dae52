"""A functions host for machines without Core Tools: serves any app of the Python v2 model.

    python -m local.functions.host --app FOLDER

It treats requests and answers as the Functions host and its Python worker do, surprises included:
routes are tried in the order of the functions' names, a method that a function does not list is
answered with 404, empty query parameters and the body of a chunked request are dropped, a body over
the limit is answered with 500, and a log record written outside a running invocation is lost.
Unlike them, it listens on loopback only, refuses any other Host header, and runs a timer only when
asked to: POST {} to /admin/functions/NAME. It gives the answers of a host that cannot run functions
on request, too (local/serving/faults.py; the operations are the functions' names):

    curl -X POST http://127.0.0.1:7071/_local/faults -d '{"operation": "token", "status": 429}'
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import re
import secrets
import socket
import sys
import traceback
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web
from azure.functions.meta import Datum
from azure.functions.timer import TimerRequestConverter

from local.functions.app import (
    AppError,
    Context,
    TraceContext,
    load_functions,
    read_json,
)
from local.functions.aspnet import decoded_path
from local.functions.http import Cors, failure, http_request, http_response
from local.functions.log import log_to_stdout
from local.functions.reload import Watch, serve_and_reload
from local.functions.serving import HEADERS_LIMIT, listen, serve_until_stopped
from local.serving.application import LOOPBACK
from local.serving.certificates import server_context
from local.serving.faults import Faults, middleware

if TYPE_CHECKING:
    from collections.abc import Mapping

    from local.functions.app import Function
    from local.serving.faults import Handler

DEFAULT_PORT = 7071
DEFAULT_BODY_LIMIT = 104857600  # If FUNCTIONS_REQUEST_BODY_SIZE_LIMIT is not set.

TRACE_PARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})")
# A timer that is run by hand gets no information about its schedule.
TIMER_INFO = Datum('{"IsPastDue": false, "Schedule": {}, "ScheduleStatus": {}}', "json")

OURS = frozenset({"localhost", LOOPBACK, "[::1]"})
BEYOND_THROTTLES = web.RequestKey("beyond_throttles", bool)

logger = logging.getLogger("host")


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Serves the functions of one app over HTTP."""

    folder: Path
    functions: list[Function]
    cors: Cors
    body_limit: int
    faults: Faults

    def application(self) -> web.Application:
        """Return the aiohttp application, for a runner that does not decompress bodies."""
        fail = middleware(self.faults, self._operation, failure)
        app = web.Application(
            middlewares=[_refuse_other_hosts, fail],
            client_max_size=0,  # The host has its own limit.
        )
        app.on_response_prepare.append(self._add_cors)
        app.add_routes(self.faults.routes())
        app.router.add_route("*", r"/{path:[\s\S]*}", self._handle)
        return app

    async def _handle(self, request: web.Request) -> web.Response:
        try:
            path = decoded_path(request.rel_url.raw_path)
            # aiohttp keeps bytes that are not UTF-8 as lone surrogates. Kestrel refuses them.
            size = len(
                "".join(f"{name}: {each}\r\n" for name, each in request.headers.items()).encode()
            )
        except ValueError:
            return web.Response(status=400)
        if size > HEADERS_LIMIT:
            return web.Response(status=431)
        request[BEYOND_THROTTLES] = True
        if self.cors.is_preflight(request):
            return web.Response(status=204)
        if path.lower().startswith("/admin/"):
            return await self._admin(request, path.lower().rstrip("/"))
        found = self._find(request.method, path)
        return await self._answer(*found, request, path) if found else web.Response(status=404)

    def _find(self, method: str, path: str) -> tuple[Function, dict[str, str]] | None:
        """Return the function that serves a path, with its route parameters."""
        for function in self.functions:
            if function.route and (method in function.methods or not function.methods):
                parameters = function.route.match(path)
                if parameters is not None:
                    return function, parameters
        return None

    def _operation(self, request: web.Request) -> str | None:
        """Return the name of the function that a request is for, if any."""
        try:
            path = decoded_path(request.rel_url.raw_path)
        except ValueError:
            return None
        found = None if self.cors.is_preflight(request) else self._find(request.method, path)
        return found[0].name if found else None

    async def _add_cors(self, request: web.Request, response: web.StreamResponse) -> None:
        """Let pages read the answers of functions, and the 500 of one that failed.

        As in the real host (WebJobsApplicationBuilderExtension in Azure/azure-functions-host), what
        is refused because it is busy or does not run is answered before CORS has its turn.
        """
        if request.get(BEYOND_THROTTLES) or response.status == HTTPStatus.INTERNAL_SERVER_ERROR:
            self.cors.add_headers(request, response)

    async def _answer(
        self, function: Function, parameters: dict[str, str], request: web.Request, path: str
    ) -> web.Response:
        # The host takes a body only if its length is announced, and fails inside the invocation if
        # it is over the limit: Azure/azure-functions-host#7930 and #10519.
        length = request.content_length or 0
        if length > self.body_limit:
            logger.error("%s: the request body is over %s bytes", function.name, self.body_limit)
            return web.Response(status=500)
        body = await request.read() if length else b""
        try:
            value = http_request(request, path, parameters, body)
            return http_response(await function.run(value, self._context(function, request)))
        except Exception as exc:  # noqa: BLE001 - as the real host does
            logger.error("%s failed: %s", function.name, _as_sent(exc))  # noqa: TRY400 - `_as_sent` has the trace
            return web.Response(status=500)

    async def _admin(self, request: web.Request, path: str) -> web.Response:
        if request.method == "GET" and path == "/admin/host/status":
            return web.json_response({"state": "Running"})
        if request.method == "GET" and path == "/admin/functions":
            return web.json_response([{"name": function.name} for function in self.functions])
        for function in self.functions:
            if request.method == "POST" and path == f"/admin/functions/{function.name.lower()}":
                return await self._run_timer(function, request)
        return web.Response(status=404)

    async def _run_timer(self, function: Function, request: web.Request) -> web.Response:
        if function.route:
            return web.Response(status=400, text=f"{function.name} is called at its own URL.\n")
        if request.content_type != "application/json":
            return web.Response(status=415)
        try:
            json.loads(await request.read())
        except ValueError:
            return web.Response(status=400)
        try:
            # The real host does not wait. Here, the log is complete when the answer comes.
            info = TimerRequestConverter.decode(TIMER_INFO, trigger_metadata=None)
            await function.run(info, self._context(function, request))
        except Exception as exc:  # noqa: BLE001 - as the real host does
            logger.error("%s failed: %s", function.name, _as_sent(exc))  # noqa: TRY400 - `_as_sent` has the trace
        return web.Response(status=202)

    def _context(self, function: Function, request: web.Request) -> Context:
        caller = TRACE_PARENT.fullmatch(request.headers.get("traceparent", ""))
        trace, flags = caller.groups() if caller else (secrets.token_hex(16), "00")
        trace_parent = f"00-{trace}-{secrets.token_hex(8)}-{flags}"
        trace_state = request.headers.get("tracestate", "") if caller else ""
        return Context(function.name, str(self.folder), TraceContext(trace_parent, trace_state))


@web.middleware
async def _refuse_other_hosts(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A page elsewhere could point its own name at this computer and read the answers."""
    if re.sub(":[0-9]+$", "", request.host).lower() not in OURS:
        return web.Response(status=403)
    return await handler(request)


def load(folder: Path, local: Mapping[str, Any]) -> Host:
    """Put the settings into the environment, import the app and return its host.

    Raises:
        AppError: it cannot be served.
    """
    host_json = read_json(folder / "host.json")
    for name, value in local.get("Values", {}).items():
        if not isinstance(value, str):
            raise AppError(f"the setting {name} must be a string")
        if not os.environ.get(name):  # As in Core Tools, an empty variable counts as not set.
            os.environ[name] = value
    os.environ["AZURE_FUNCTIONS_ENVIRONMENT"] = "Development"
    settings = local.get("Host", {})
    cors = Cors(
        tuple(filter(None, settings.get("CORS", "").split(","))),
        settings.get("CORSCredentials", False),
    )
    if cors.credentials and "*" in cors.origins:
        raise AppError('Host.CORS cannot be "*" together with CORSCredentials')
    prefix = host_json.get("extensions", {}).get("http", {}).get("routePrefix", "api")
    functions = load_functions(folder, prefix, os.environ)
    return Host(
        folder=folder,
        functions=functions,
        faults=Faults(function.name for function in functions if function.route),
        cors=cors,
        body_limit=int(os.environ.get("FUNCTIONS_REQUEST_BODY_SIZE_LIMIT") or DEFAULT_BODY_LIMIT),
    )


def _as_sent(exc: Exception) -> str:
    """Return what the worker tells the host of an exception: its text and places, not its causes.

    `marshall_exception_trace` in Azure/azure-functions-python-worker.
    """
    return f"{type(exc).__name__}: {exc}\n{''.join(traceback.format_tb(exc.__traceback__))}"


def main() -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m local.functions.host", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--app", type=Path, default=Path(), help="folder of function_app.py")
    parser.add_argument("--port", type=int, help="0 takes a free one (default: 7071)")
    parser.add_argument("--settings", type=Path, help="default: local.settings.json of the app")
    parser.add_argument("--reload", action="store_true", help="take up edits of the app")
    parser.add_argument("--certificate", type=Path, help="serve HTTPS with this file (PEM)")
    parser.add_argument("--key", type=Path, help="the certificate's private key (PEM)")
    parser.add_argument("--socket", type=int, help=argparse.SUPPRESS)  # For `--reload`.
    arguments = parser.parse_args()
    if bool(arguments.certificate) != bool(arguments.key):
        parser.error("--certificate and --key go together")
    log_to_stdout()
    try:
        return _serve(arguments)
    except AppError as exc:
        print(f"The app cannot be served: {exc}", file=sys.stderr)
        return 1


def _serve(arguments: argparse.Namespace) -> int:
    folder = arguments.app.resolve()
    settings = arguments.settings or folder / "local.settings.json"
    local = read_json(settings) if arguments.settings or settings.is_file() else {}
    port = local.get("Host", {}).get("LocalHttpPort", DEFAULT_PORT)
    if arguments.port is not None:
        port = arguments.port
    tls = server_context(arguments.certificate, arguments.key) if arguments.key else None
    if arguments.reload:
        own = [each for each in sys.argv[1:] if each != "--reload"]
        with listen(port) as listener:
            watch = Watch(folder, settings.resolve())
            return asyncio.run(serve_and_reload(own, watch, listener, tls))
    host = load(folder, local)
    listener = listen(port) if arguments.socket is None else socket.socket(fileno=arguments.socket)
    asyncio.run(serve_until_stopped(host, listener, tls))
    return 0


if __name__ == "__main__":
    exit_code = main()
    logging.shutdown()
    sys.stdout.flush()
    # As on the platform, the process ends without closing anything that the app has opened.
    os._exit(exit_code)
