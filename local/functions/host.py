"""A functions host for those who have no Core Tools: serves any app of the Python v2 model.

    python -m local.functions.host --app FOLDER

It does with requests and answers what the Functions host and its Python worker do, down to their
surprises: routes are tried in the order of the functions' names, a method that a function does
not list is 404, an empty query parameter and the body of a chunked request never arrive, a body
over the limit is 500, and a log record that the app writes outside a running invocation is lost.
Unlike them it listens on loopback only, refuses any other Host header, and runs a timer only when
asked to: POST {} to /admin/functions/NAME.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import inspect
import json
import logging
import os
import re
import secrets
import signal
import sys
import threading
import time
import uuid
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage
from azure.functions import FunctionRegister
from azure.functions.http import HttpRequestConverter, HttpResponseConverter
from azure.functions.meta import Datum
from azure.functions.timer import TimerRequestConverter

from local.functions.aspnet import Route, decoded_path, joined
from local.serving.application import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

DEFAULT_PORT = 7071
DEFAULT_BODY_LIMIT = 104857600  # FUNCTIONS_REQUEST_BODY_SIZE_LIMIT, where it is not set.
HEADERS_LIMIT = 32768  # Kestrel's MaxRequestHeadersTotalSize.
SHUTDOWN_SECONDS = 10.0  # What requests in flight get to finish.

TRACE_PARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})")
CRON = re.compile(r"[0-9*/,-]+( [0-9*/,-]+){3}( [0-9A-Za-z*/,-]+){2}")
# A timer that is run by hand is told nothing about its schedule.
TIMER_INFO = Datum('{"IsPastDue": false, "Schedule": {}, "ScheduleStatus": {}}', "json")

logger = logging.getLogger("host")
# Whose records are shown at all times: this host's own, and Python's about tasks gone wrong.
HOST_LOGGERS = ("host", "aiohttp", "asyncio")


class HostError(Exception):
    """The app cannot be served; the message tells its developer why."""


@dataclass(frozen=True, slots=True)
class Cors:
    """The origins that a browser may call from, as `Host` in local.settings.json names them."""

    origins: tuple[str, ...] = ()
    credentials: bool = False

    def is_preflight(self, request: web.Request) -> bool:
        """Tell whether the host answers a request, in place of any function."""
        asks = {"Origin", "Access-Control-Request-Method"} <= request.headers.keys()
        return bool(self.origins) and request.method == "OPTIONS" and asks

    def add_headers(self, request: web.Request, response: web.Response) -> None:
        """Let the page that asked read the answer, where its origin is one of these."""
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


@dataclass(frozen=True, slots=True)
class TraceContext:
    """The W3C trace that an invocation belongs to."""

    trace_parent: str
    trace_state: str
    attributes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Context:
    """What a function gets that asks for `context`, under the worker's names."""

    function_name: str
    function_directory: str
    trace_context: TraceContext
    invocation_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    thread_local_storage: threading.local = field(default_factory=threading.local)
    retry_context: None = None


@dataclass(slots=True)
class Invocation:
    """One call of a function, as work that it started sees it, also once it has ended."""

    function: str
    over: bool = False


# The tasks that an invocation starts belong to it: the worker hands its id on in the same way.
current_invocation: ContextVar[Invocation | None] = ContextVar("invocation", default=None)


@dataclass(frozen=True, slots=True)
class Function:
    """One function of the app. Without a route it is a timer; without methods it takes all."""

    name: str
    call: Callable[..., Any]
    argument: str
    route: Route | None
    methods: frozenset[str]

    async def run(self, value: Any, context: Context) -> Any:  # noqa: ANN401 - the app's own types
        """Call the function, in a thread where it is not async, and return what it returns."""
        invocation = Invocation(self.name)
        current_invocation.set(invocation)
        arguments = {self.argument: value}
        if "context" in inspect.signature(self.call).parameters:
            arguments["context"] = context
        try:
            if inspect.iscoroutinefunction(self.call):
                return await self.call(**arguments)
            return await asyncio.to_thread(self.call, **arguments)
        finally:
            invocation.over = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Serves the functions of one app over HTTP."""

    folder: Path
    functions: list[Function]
    cors: Cors
    body_limit: int

    def application(self) -> web.Application:
        """Return the aiohttp application, for a runner that leaves bodies encoded as they are."""
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
        # The host takes a body only where its length is announced, and fails inside the invocation
        # where that is over the limit: Azure/azure-functions-host#7930 and #10519.
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
            return web.Response(status=400, text=f"{function.name} has a URL of its own.\n")
        if request.content_type != "application/json":
            return web.Response(status=415)
        try:
            json.loads(await request.read())
        except ValueError:
            return web.Response(status=400)
        try:
            # The real host does not wait. Here a caller can read the log once it has the answer.
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


def http_request(request: web.Request, path: str, parameters: dict[str, str], body: bytes) -> Any:  # noqa: ANN401 - azure.functions.HttpRequest, from an SDK function without a type
    """Return the request as the worker hands it to a function."""
    # A percent sign that begins no escape is escaped itself, as PathString.ToUriComponent does.
    escaped = quote(re.sub("%(?![0-9A-Fa-f]{2})", "%25", path), safe="/!$&'()*+,;=:@%")
    query = request.rel_url.raw_query_string
    # The worker does not ask for empty parameters, so the host leaves them out.
    given = joined(parse_qsl(query))
    http = {
        "method": Datum(request.method, "string"),
        "url": Datum(f"http://{request.host}{escaped}{query and '?'}{query}", "string"),
        "headers": _strings(joined(request.headers.items())),
        "query": _strings(given),
        "params": _strings(parameters),
        "body": Datum(body, "bytes"),
    }
    return HttpRequestConverter.decode(Datum(http, "http"), trigger_metadata=None)


def _strings(values: Mapping[str, str]) -> dict[str, Datum]:
    return {name: Datum(value, "string") for name, value in values.items()}


def http_response(returned: object) -> web.Response:
    """Return the answer for what a function returned.

    Raises:
        Exception: the worker or the host would fail on it.
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


def load_functions(folder: Path, prefix: str, settings: Mapping[str, str]) -> list[Function]:
    """Import an app's function_app.py and return its functions, in the order they are tried.

    Raises:
        HostError: there is none, or it has a trigger, route or schedule that cannot be served.
    """
    if not (folder / "function_app.py").is_file():
        raise HostError(f"there is no function_app.py in {folder}")
    sys.path.insert(0, str(folder))
    members = vars(importlib.import_module("function_app")).values()
    apps = [each for each in members if isinstance(each, FunctionRegister)]
    if len(apps) != 1:
        raise HostError(f"function_app.py must define one function app, and has {len(apps)}")
    functions = []
    for indexed in apps[0].get_functions():
        name = str(indexed.get_function_name())
        bindings = {each["type"]: each for each in map(json.loads, indexed.get_raw_bindings())}
        unknown = bindings.keys() - {"httpTrigger", "http", "timerTrigger"}
        if unknown:
            raise HostError(f"{name}: {', '.join(sorted(unknown))} is not served here")
        route = None
        trigger = bindings.get("httpTrigger") or bindings["timerTrigger"]
        call = indexed.get_user_function()
        if inspect.signature(call).parameters.keys() - {"context"} != {trigger["name"]}:
            raise HostError(f"{name} must take one argument that is called {trigger['name']!r}")
        try:
            if trigger["type"] == "httpTrigger":
                route = Route.parse(f"{prefix}/{trigger.get('route') or name}".removeprefix("/"))
            else:
                check_schedule(trigger["schedule"], settings)
        except ValueError as exc:
            raise HostError(f"{name}: {exc}") from exc
        methods = frozenset(str(method).upper() for method in trigger.get("methods") or ())
        functions.append(Function(name, call, trigger["name"], route, methods))
    return sorted(functions, key=lambda function: function.name.lower())


def check_schedule(schedule: str, settings: Mapping[str, str]) -> None:
    """Check the shape of a timer's schedule, six fields of NCRONTAB or a %SETTING% with them.

    Raises:
        ValueError: the setting is missing, or the schedule is none.
    """
    for name in re.findall("%([^%]+)%", schedule):
        if name not in settings:
            raise ValueError(f"%{name}% does not resolve to a value")
        schedule = schedule.replace(f"%{name}%", settings[name])
    if not CRON.fullmatch(schedule.strip()):
        raise ValueError(f"{schedule!r} is not a schedule (second minute hour day month weekday)")


class OneLineFormatter(logging.Formatter):
    """Formats a record as one line, whatever its message and traceback hold."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with the function that was running."""
        moment = time.strftime("%H:%M:%S", time.localtime(record.created))
        invocation = current_invocation.get()
        source = invocation.function if invocation else "host"
        head = f"[{moment}.{int(record.msecs):03}] {source}: {record.levelname} "
        text = super().format(record)
        return head + "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def log_to_stdout() -> None:
    """Send the app's log records to stdout, from INFO on; of the Azure SDKs only warnings."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(OneLineFormatter())
    handler.addFilter(_arrives)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("azure").setLevel(logging.WARNING)
    # aiohttp would quote the header that it cannot read, and with it a token.
    logging.getLogger("aiohttp.server").addFilter(_says_nothing_of_headers)


def _arrives(record: logging.LogRecord) -> bool:
    """Tell whether a record would reach the host's log.

    The worker sends each record with the id of the invocation whose task writes it. The host takes
    it only while that invocation runs (GrpcWorkerChannel.Log in Azure/azure-functions-host), and
    drops the others without a word. Standard output is forwarded at all times.
    """
    invocation = current_invocation.get()
    of_the_app = record.name.partition(".")[0] not in HOST_LOGGERS
    return not of_the_app or (invocation is not None and not invocation.over)


def _says_nothing_of_headers(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], BadHttpMessage))


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        HostError: the file is missing or holds something else.
    """
    try:
        value = json.loads(file.read_text("utf-8-sig"))
    except (OSError, ValueError) as exc:
        raise HostError(f"{file} cannot be read: {exc}") from exc
    if not isinstance(value, dict):
        raise HostError(f"{file} must hold a JSON object")
    return value


def load(folder: Path, local: Mapping[str, Any]) -> Host:
    """Put the settings into the environment, import the app and return its host.

    Raises:
        HostError: it cannot be served.
    """
    host_json = read_json(folder / "host.json")
    for name, value in local.get("Values", {}).items():
        if not isinstance(value, str):
            raise HostError(f"the setting {name} must be a string")
        if not os.environ.get(name):  # As in Core Tools, what is set but empty counts as unset.
            os.environ[name] = value
    os.environ["AZURE_FUNCTIONS_ENVIRONMENT"] = "Development"
    settings = local.get("Host", {})
    cors = Cors(
        tuple(filter(None, settings.get("CORS", "").split(","))),
        settings.get("CORSCredentials", False),
    )
    if cors.credentials and "*" in cors.origins:
        raise HostError('Host.CORS cannot be "*" together with CORSCredentials')
    prefix = host_json.get("extensions", {}).get("http", {}).get("routePrefix", "api")
    return Host(
        folder=folder,
        functions=load_functions(folder, prefix, os.environ),
        cors=cors,
        body_limit=int(os.environ.get("FUNCTIONS_REQUEST_BODY_SIZE_LIMIT") or DEFAULT_BODY_LIMIT),
    )


def announce(host: Host, url: str) -> None:
    """Print the functions with their URLs as `func start` does, then the line for programs."""
    print("Functions:\n")
    for function in host.functions:
        if function.route:
            methods = ",".join(sorted(function.methods)) or "all"
            print(f"    {function.name}: [{methods}] {url}/{function.route.template}")
        else:
            print(f"    {function.name}: timerTrigger, not on schedule here; to run it now:")
            print("        curl -X POST -H 'Content-Type: application/json' -d '{}' \\")
            print(f"            {url}/admin/functions/{function.name}")
    print(f"\nready {url}", flush=True)


async def serve_until_stopped(host: Host, port: int) -> None:
    """Serve until SIGINT or SIGTERM, then let requests in flight finish.

    Raises:
        HostError: the port is taken.
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
        raise HostError(f"port {port} cannot be opened: {exc.strerror}") from exc
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
    except HostError as exc:
        print(f"The app cannot be served: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    exit_code = main()
    logging.shutdown()
    sys.stdout.flush()
    # As on the platform: the process ends, and nothing of the app is asked to close.
    os._exit(exit_code)
