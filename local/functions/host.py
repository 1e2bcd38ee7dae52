"""A functions host for machines without Core Tools: serves any app of the Python v2 model.

    python -m local.functions.host --app FOLDER

It treats requests and answers as the Functions host and its Python worker do, surprises included:
routes are tried in the order of the functions' names, a method that a function does not list is
answered with 404, empty query parameters and the body of a chunked request are dropped, a body over
the limit is answered with 500, and a log record written outside a running invocation is lost.
Unlike them, it listens on loopback only, refuses any other Host header, and runs a timer only when
asked to: POST {} to /admin/functions/NAME.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import re
import secrets
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web
from azure.functions.meta import Datum
from azure.functions.timer import TimerRequestConverter

from local.functions.app import AppError, Context, TraceContext, load_functions
from local.functions.aspnet import decoded_path
from local.functions.http import Cors, http_request, http_response
from local.functions.log import log_to_stdout
from local.serving.application import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Mapping

    from local.functions.app import Function

DEFAULT_PORT = 7071
DEFAULT_BODY_LIMIT = 104857600  # If FUNCTIONS_REQUEST_BODY_SIZE_LIMIT is not set.
HEADERS_LIMIT = 32768  # Kestrel's MaxRequestHeadersTotalSize.
SHUTDOWN_SECONDS = 10.0  # For requests in flight to finish.

TRACE_PARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})")
# A timer that is run by hand gets no information about its schedule.
TIMER_INFO = Datum('{"IsPastDue": false, "Schedule": {}, "ScheduleStatus": {}}', "json")

logger = logging.getLogger("host")


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Serves the functions of one app over HTTP."""

    folder: Path
    functions: list[Function]
    cors: Cors
    body_limit: int

    def application(self) -> web.Application:
        """Return the aiohttp application, for a runner that does not decompress bodies."""
        app = web.Application(client_max_size=0)  # The host has its own limit.
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
        if re.sub(":[0-9]+$", "", request.host).lower() not in {"localhost", LOOPBACK, "[::1]"}:
            # A page elsewhere could point its own name at this computer and read the answers.
            return web.Response(status=403)
        if self.cors.is_preflight(request):
            response = web.Response(status=204)
        elif path.lower().startswith("/admin/"):
            response = await self._admin(request, path.lower().rstrip("/"))
        else:
            response = await self._function(request, path)
        self.cors.add_headers(request, response)
        return response

    async def _function(self, request: web.Request, path: str) -> web.Response:
        for function in self.functions:
            if function.route and (request.method in function.methods or not function.methods):
                parameters = function.route.match(path)
                if parameters is not None:
                    return await self._answer(function, request, path, parameters)
        return web.Response(status=404)

    async def _answer(
        self, function: Function, request: web.Request, path: str, parameters: dict[str, str]
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
        except Exception:
            logger.exception("%s failed", function.name)
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
        except Exception:
            logger.exception("%s failed", function.name)
        return web.Response(status=202)

    def _context(self, function: Function, request: web.Request) -> Context:
        caller = TRACE_PARENT.fullmatch(request.headers.get("traceparent", ""))
        trace, flags = caller.groups() if caller else (secrets.token_hex(16), "00")
        trace_parent = f"00-{trace}-{secrets.token_hex(8)}-{flags}"
        trace_state = request.headers.get("tracestate", "") if caller else ""
        return Context(function.name, str(self.folder), TraceContext(trace_parent, trace_state))


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        AppError: the file cannot be read, or does not hold a JSON object.
    """
    try:
        value = json.loads(file.read_text("utf-8-sig"))
    except (OSError, ValueError) as exc:
        raise AppError(f"{file} cannot be read: {exc}") from exc
    if not isinstance(value, dict):
        raise AppError(f"{file} must hold a JSON object")
    return value


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
    return Host(
        folder=folder,
        functions=load_functions(folder, prefix, os.environ),
        cors=cors,
        body_limit=int(os.environ.get("FUNCTIONS_REQUEST_BODY_SIZE_LIMIT") or DEFAULT_BODY_LIMIT),
    )


def announce(host: Host, url: str) -> None:
    """Print the functions and their URLs as `func start` does, then a line for programs to read."""
    print("Functions:\n")
    for function in host.functions:
        if function.route:
            methods = ",".join(sorted(function.methods)) or "all"
            print(f"    {function.name}: [{methods}] {url}/{function.route.template}")
        else:
            print(f"    {function.name}: timerTrigger, not run on schedule here; to run it now:")
            print("        curl -X POST -H 'Content-Type: application/json' -d '{}' \\")
            print(f"            {url}/admin/functions/{function.name}")
    print(f"\nready {url}", flush=True)


async def serve_until_stopped(host: Host, port: int) -> None:
    """Serve until SIGINT or SIGTERM, then let requests in flight finish.

    Raises:
        AppError: the port is taken.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(each, stop.set)
    runner = web.AppRunner(
        host.application(),
        access_log=None,
        shutdown_timeout=SHUTDOWN_SECONDS,
        max_field_size=2 * HEADERS_LIMIT,
        auto_decompress=False,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, LOOPBACK, port).start()
        announce(host, f"http://{LOOPBACK}:{runner.addresses[0][1]}")
        await stop.wait()
    except OSError as exc:
        raise AppError(f"port {port} cannot be opened: {exc.strerror}") from exc
    finally:
        await runner.cleanup()


def main() -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m local.functions.host", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--app", type=Path, default=Path(), help="folder of function_app.py")
    parser.add_argument("--port", type=int, help="0 takes a free one (default: 7071)")
    parser.add_argument("--settings", type=Path, help="default: local.settings.json of the app")
    arguments = parser.parse_args()
    folder = arguments.app.resolve()
    settings = arguments.settings or folder / "local.settings.json"
    log_to_stdout()
    try:
        local = read_json(settings) if arguments.settings or settings.is_file() else {}
        port = local.get("Host", {}).get("LocalHttpPort", DEFAULT_PORT)
        if arguments.port is not None:
            port = arguments.port
        asyncio.run(serve_until_stopped(load(folder, local), port))
    except AppError as exc:
        print(f"The app cannot be served: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    exit_code = main()
    logging.shutdown()
    sys.stdout.flush()
    # As on the platform, the process ends without closing anything that the app has opened.
    os._exit(exit_code)
