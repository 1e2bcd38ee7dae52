from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import ClientConnectionError, ClientSession

from local.functions.aspnet import Route, decoded_path, joined

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

REPOSITORY = Path(__file__).parents[3]

APP = """
import asyncio, json, logging, os, threading, time
import azure.functions as func

logging.warning("while it is imported")
app = func.FunctionApp(http_auth_level=func.AuthLevel.ANONYMOUS)

@app.route(route="echo/{id:int?}", methods=["GET", "POST"])
async def echo(req: func.HttpRequest, context: func.Context) -> func.HttpResponse:
    logging.getLogger("azure.core").info("unheard")
    logging.getLogger("app").info("two\\nlines \\x1b[31m")
    return func.HttpResponse(json.dumps({
        "method": req.method, "url": req.url, "headers": dict(req.headers),
        "params": dict(req.params), "route": dict(req.route_params),
        "body": req.get_body().decode("latin-1"),
        "name": context.function_name, "invocation": context.invocation_id,
        "trace": context.trace_context.trace_parent, "state": context.trace_context.trace_state,
        "setting": os.environ.get("FROM_FILE"), "kept": os.environ.get("FROM_BOTH"),
    }), mimetype="application/json")

@app.route()
def in_thread(req: func.HttpRequest) -> str:
    return f"main thread: {threading.current_thread() is threading.main_thread()}"

@app.route(route="files/{*path}", methods=["GET"])
async def files(req: func.HttpRequest) -> func.HttpResponse:
    return func.HttpResponse(json.dumps([req.route_params.get("path"), req.url]))

@app.route(route="files/known", methods=["GET"])
async def z_never_reached(req: func.HttpRequest) -> func.HttpResponse:
    return func.HttpResponse("specific")

@app.route(route="answers/{how}", methods=["GET", "HEAD"])
async def answers(req: func.HttpRequest) -> func.HttpResponse:
    how = req.route_params["how"]
    if how == "error":
        raise RuntimeError("secret of the function")
    if how == "nothing":
        return None
    if how == "injection":
        return func.HttpResponse("x", headers={"X-Name": "a\\r\\nSet-Cookie: b=c"})
    headers = {"X-Name": "value", "Vary": "Accept"}
    response = func.HttpResponse("grüße", status_code=418, headers=headers)
    response.headers.add("Set-Cookie", "a=1; Path=/")
    response.headers.add("Set-Cookie", "b=2; HttpOnly")
    return response

@app.route(route="slow")
async def slow(req: func.HttpRequest) -> func.HttpResponse:
    print("slow began", flush=True)
    await asyncio.sleep(0.5)
    return func.HttpResponse("done")

@app.route(route="outlived")
async def outlived(req: func.HttpRequest) -> func.HttpResponse:
    began = asyncio.Event()
    async def work() -> None:
        logging.info("in time")
        began.set()
        await asyncio.sleep(0.1)
        logging.error("too late to be logged")
        print("printed late", flush=True)
    asyncio.create_task(work())
    await began.wait()
    return func.HttpResponse("done")

@app.timer_trigger(schedule="%SCHEDULE%", arg_name="timer")
async def Prune(timer: func.TimerRequest) -> None:
    logging.info("pruned past_due=%s", timer.past_due)

@app.timer_trigger(schedule="0 0 3 * * MON-FRI", arg_name="timer")
async def broken(timer: func.TimerRequest) -> None:
    raise RuntimeError("timer broke")
"""
SETTINGS: dict[str, Any] = {
    "IsEncrypted": False,
    "Values": {
        "FROM_FILE": "file",
        "FROM_BOTH": "file",
        "SCHEDULE": "0 */5 * * * *",
        "FUNCTIONS_REQUEST_BODY_SIZE_LIMIT": "1000",
    },
    "Host": {"CORS": "https://one.example,http://two.example:8080", "CORSCredentials": True},
}


class RunningHost:
    """A host in its own process, and what it printed."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self.log = log
        self.url = ""

    def printed(self) -> str:
        """Return all output so far."""
        return self.log.read_text()


def write_app(folder: Path, code: str = APP, settings: dict[str, Any] | None = None) -> None:
    """Write the files of a functions app."""
    (folder / "function_app.py").write_text(code, "utf-8")
    (folder / "host.json").write_text('{"version": "2.0"}')
    (folder / "local.settings.json").write_text(json.dumps(settings or SETTINGS))


def start(folder: Path, *arguments: str) -> RunningHost:
    """Start the host of an app folder."""
    log = folder / "host.log"
    with log.open("w") as output:
        process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-m", "local.functions.host", "--app", str(folder), *arguments],
            cwd=REPOSITORY,
            env={**os.environ, "FROM_BOTH": "environment"},
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
    return RunningHost(process, log)


@contextmanager
def running(folder: Path) -> Iterator[RunningHost]:
    """Run the host of an app folder on a free port until the context ends."""
    host = start(folder, "--port", "0")
    try:
        while not (ready := re.search("^ready (.*)$", host.printed(), re.MULTILINE)):
            assert host.process.poll() is None, host.printed()
            with pytest.raises(subprocess.TimeoutExpired):
                host.process.wait(0.05)
        host.url = ready[1]
        yield host
    finally:
        host.process.terminate()
        assert 0 == host.process.wait(20), host.printed()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHost]:
    """Run one host for all tests that leave it running."""
    folder = tmp_path_factory.mktemp("app")
    write_app(folder)
    with running(folder) as host:
        yield host


@pytest.fixture
async def http(host: RunningHost) -> AsyncIterator[ClientSession]:
    """Open a client whose paths are relative to the host."""
    async with ClientSession(host.url) as session:
        yield session


async def raw(host: RunningHost, request: str | bytes) -> bytes:
    """Send the bytes of a request, and return those of the answer."""
    address, port = host.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(address, int(port))
    writer.write(request if isinstance(request, bytes) else request.encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def get(host: RunningHost, target: str, headers: str = "") -> tuple[int, str]:
    """Get a request target as it is spelled, and return status and body."""
    request = f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n"
    head, _, body = (await raw(host, request)).partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


class TestRequests:
    """What a function gets."""

    async def test_arrive_as_from_the_worker(self, host: RunningHost) -> None:
        """Repeated values are joined, names are lower case, empty parameters are gone."""
        answer = await raw(
            host,
            "POST /api/echo/7?a=1&b=&A=2&c=x%20y+z&d HTTP/1.1\r\nHost: localhost\r\nX-Two: 1\r\n"
            "x-two: 2\r\nX-Empty:\r\nConnection: close\r\nContent-Length: 5\r\n\r\n\0body",
        )

        head, _, body = answer.partition(b"\r\n\r\n")
        echo = json.loads(body)
        assert "POST" == echo["method"]
        assert "http://localhost/api/echo/7?a=1&b=&A=2&c=x%20y+z&d" == echo["url"]
        assert {"a": "1,2", "c": "x y z"} == echo["params"]
        assert {"id": "7"} == echo["route"]
        assert "\x00body" == echo["body"]
        assert ("1,2", "") == (echo["headers"]["x-two"], echo["headers"]["x-empty"])
        assert "echo" == echo["name"]
        assert b"\r\ncontent-type: application/json\r\n" in head

    async def test_settings(self, http: ClientSession) -> None:
        """Values become environment variables, and never replace one."""
        echo = await (await http.get("/api/echo")).json()

        assert ("file", "environment") == (echo["setting"], echo["kept"])

    async def test_trace(self, http: ClientSession) -> None:
        """The caller's trace continues with the host's span; without one, a new trace begins."""
        trace = "4bf92f3577b34da6a3ce929d0e0e4736"
        headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01", "tracestate": "a=b"}

        known = await (await http.get("/api/echo", headers=headers)).json()
        new = await (await http.get("/api/echo", headers={"traceparent": "00-x-y-01"})).json()

        assert re.fullmatch(f"00-{trace}-(?!00f067aa0ba902b7)[0-9a-f]{{16}}-01", known["trace"])
        assert "a=b" == known["state"]
        assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-00", new["trace"])
        assert known["invocation"] != new["invocation"]

    async def test_chunked_body_is_lost(self, host: RunningHost) -> None:
        """The real host drops a body whose length was not announced."""
        answer = await raw(
            host,
            "POST /api/echo HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            "Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
        )

        assert b'"body": ""' in answer

    async def test_body_limit(self, http: ClientSession) -> None:
        """The real host fails on a body over the limit; it does not answer 413."""
        assert 200 == (await http.post("/api/echo", data=b"x" * 1000)).status
        assert 500 == (await http.post("/api/echo", data=b"x" * 1001)).status

    async def test_encoded_body_arrives_as_sent(self, http: ClientSession) -> None:
        """A compressed body reaches the function as it was sent."""
        answer = await http.post("/api/echo", data=b"x", headers={"Content-Encoding": "gzip"})

        assert "x" == (await answer.json())["body"]

    async def test_long_header(self, host: RunningHost) -> None:
        """A token of 24 KiB is accepted, 32 KiB of headers are not."""
        assert 200 == (await get(host, "/api/echo", f"Authorization: {'x' * 24576}\r\n"))[0]
        assert 431 == (await get(host, "/api/echo", f"Authorization: {'x' * 32768}\r\n"))[0]

    @pytest.mark.parametrize(
        "head",
        [
            pytest.param(b"GET /api/echo HTTP/1.1\r\n", id="no host"),
            pytest.param(
                b"GET /api/echo HTTP/1.1\r\nHost: localhost\r\nX: \xff\r\n", id="not UTF-8"
            ),
            pytest.param(b"GET /api/echo/\xc3\xa9 HTTP/1.1\r\nHost: localhost\r\n", id="raw path"),
            pytest.param(b"GET /api/files/%00 HTTP/1.1\r\nHost: localhost\r\n", id="null in path"),
        ],
    )
    async def test_malformed(self, host: RunningHost, head: bytes) -> None:
        """What Kestrel refuses to read is 400."""
        answer = await raw(host, head + b"Connection: close\r\n\r\n")

        assert b"400" == answer.split()[1]

    async def test_foreign_host_name(self, http: ClientSession) -> None:
        """A page that points its own name at this computer is refused."""
        refused = await http.get("/api/echo", headers={"Host": "evil.example"})

        assert 403 == refused.status


class TestRoutes:
    """Which function a request goes to."""

    async def test_any_case_and_trailing_slash(self, http: ClientSession) -> None:
        """Paths are compared without case, and one trailing slash is ignored."""
        assert 200 == (await http.get("/API/Echo/")).status

    async def test_sync_function_runs_in_a_thread(self, http: ClientSession) -> None:
        """Without methods all are taken; without a route the name is used; a string is text."""
        answer = await http.request("PUT", "/api/in_thread")

        assert (200, "main thread: False") == (answer.status, await answer.text())

    async def test_order_is_by_name(self, http: ClientSession) -> None:
        """A wide route wins over a specific one if its function's name comes first."""
        assert "specific" != await (await http.get("/api/files/known")).text()

    @pytest.mark.parametrize(
        "target",
        [
            pytest.param("/api/echo/seven", id="constraint"),
            pytest.param("/api/echo/7/8", id="longer"),
            pytest.param("/api//echo", id="empty segment"),
            pytest.param("/echo", id="no prefix"),
            pytest.param("/", id="root"),
            pytest.param("/api/../echo", id="dots"),
        ],
    )
    async def test_no_such_path(self, host: RunningHost, target: str) -> None:
        """An unknown path is 404, without a body."""
        assert (404, "") == await get(host, target)

    async def test_unlisted_method(self, http: ClientSession) -> None:
        """The real host has no 405: the method is part of the route."""
        assert 404 == (await http.delete("/api/echo")).status

    @pytest.mark.parametrize(
        ("target", "path", "url"),
        [
            pytest.param("a/b", "a/b", "a/b", id="plain"),
            pytest.param("a%2Fb", "a%2Fb", "a%2Fb", id="encoded slash stays"),
            pytest.param("%C3%BC%20", "ü ", "%C3%BC%20", id="UTF-8"),
            pytest.param("%ff", "%ff", "%ff", id="not UTF-8 stays"),
            pytest.param("100%", "100%", "100%25", id="lone percent sign"),
            pytest.param("a%0Ab", "a\nb", "a%0Ab", id="line break"),
            pytest.param("x/%2e%2e/y", "y", "y", id="encoded dots"),
            pytest.param("", None, "", id="nothing"),
        ],
    )
    async def test_paths_are_decoded_as_by_kestrel(
        self, host: RunningHost, target: str, path: str | None, url: str
    ) -> None:
        """Both the parameter and the URL are what ASP.NET makes of the request target."""
        _, body = await get(host, f"/api/files/{target}")

        assert [path, f"http://localhost/api/files/{url}"] == json.loads(body)

    @pytest.mark.parametrize(
        ("template", "path", "values"),
        [
            ("a/{x:guid}", "/a/0F8fad5b-d9cb-469f-a165-70867728950e", True),
            ("a/{x:guid}", "/a/0F8fad5b", False),
            ("a/{x:bool}", "/a/True", True),
            ("a.b", "/axb", False),
            ("{**x}", "/a/b", True),
        ],
    )
    def test_template(self, template: str, path: str, values: bool) -> None:
        """Templates mean what they mean in ASP.NET."""
        assert values == (Route.parse(template).match(path) is not None)

    @pytest.mark.parametrize("template", ["/a", "a//b", "a-{b}", "{a:regex(x)}", "{a=5}", "{a"])
    def test_template_beyond_this_host(self, template: str) -> None:
        """What is not understood is refused at start, not matched wrongly."""
        with pytest.raises(ValueError, match="not supported"):
            Route.parse(template)

    def test_values(self) -> None:
        """Empty values count for nothing beside others."""
        assert {"a": "1,2"} == joined([("a", ""), ("A", "1"), ("a", "2")])

    def test_dots_above_the_root(self) -> None:
        """A path never leaves the root."""
        assert "/b" == decoded_path("/../a/../../b")


class TestAnswers:
    """The answer to each thing that a function can return."""

    async def test_response(self, http: ClientSession) -> None:
        """Status, headers, cookies and text are the function's."""
        answer = await http.get("/api/answers/tea")

        assert (418, "grüße") == (answer.status, await answer.text())
        assert "text/plain; charset=utf-8" == answer.headers["Content-Type"]
        assert "value" == answer.headers["X-Name"]
        assert {"a=1; Path=/", "b=2; HttpOnly"} == set(answer.headers.getall("Set-Cookie"))

    async def test_head(self, http: ClientSession) -> None:
        """HEAD goes to a function that lists it."""
        assert 418 == (await http.head("/api/answers/tea")).status

    @pytest.mark.parametrize("how", ["error", "nothing", "injection"])
    async def test_failing_function(self, host: RunningHost, how: str) -> None:
        """An error is logged as one line, and never shown to the caller."""
        assert (500, "") == await get(host, f"/api/answers/{how}")
        assert re.search(
            r"^.* answers: ERROR answers failed: \w+: .*File ", host.printed(), re.MULTILINE
        )

    async def test_log_lines(self, host: RunningHost, http: ClientSession) -> None:
        """One record is one line, and the Azure SDKs are quiet."""
        await http.get("/api/echo")

        assert r"echo: INFO two\nlines \x1b[31m" in host.printed()
        assert "unheard" not in host.printed()


class TestLog:
    """Which of the app's lines an operator in Azure would see."""

    async def test_outlived(self, http: ClientSession, host: RunningHost) -> None:
        """A record that is written after its invocation's end is lost; what is printed is not."""
        await http.get("/api/outlived")
        while "printed late" not in host.printed():  # noqa: ASYNC110 - another process prints it
            await asyncio.sleep(0.02)

        assert "outlived: INFO in time" in host.printed()
        assert "too late to be logged" not in host.printed()

    def test_outside(self, host: RunningHost) -> None:
        """A record that belongs to no invocation is lost."""
        assert "while it is imported" not in host.printed()


class TestCors:
    """Answers to browsers."""

    PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-a"}  # noqa: RUF012 - constant

    async def test_preflight(self, http: ClientSession) -> None:
        """The host answers preflights from exactly the origins in the settings."""
        headers = {"Origin": "http://two.example:8080", **self.PREFLIGHT}
        answer = await http.options("/api/echo", headers=headers)

        assert 204 == answer.status
        assert "http://two.example:8080" == answer.headers["Access-Control-Allow-Origin"]
        assert "true" == answer.headers["Access-Control-Allow-Credentials"]
        assert "POST" == answer.headers["Access-Control-Allow-Methods"]
        assert "x-a" == answer.headers["Access-Control-Allow-Headers"]
        assert "Origin" == answer.headers["Vary"]

    @pytest.mark.parametrize(
        "origin",
        ["https://one.example.evil", "HTTPS://ONE.EXAMPLE", "null", "https://one.example/"],
    )
    async def test_other_origin(self, http: ClientSession, origin: str) -> None:
        """No other origin is let in, or ever repeated."""
        preflight = await http.options("/api/echo", headers={"Origin": origin, **self.PREFLIGHT})
        answer = await http.get("/api/echo", headers={"Origin": origin})

        assert (204, 200) == (preflight.status, answer.status)
        assert not [
            name
            for each in (preflight, answer)
            for name in each.headers
            if "Access-Control" in name
        ]

    async def test_answer(self, http: ClientSession) -> None:
        """The page may read errors, too, and the function's own Vary stays."""
        headers = {"Origin": "https://one.example"}
        answers = [
            await http.get(f"/api/answers/{how}", headers=headers) for how in ("tea", "error")
        ]

        assert [418, 500] == [each.status for each in answers]
        for each in answers:
            assert "https://one.example" == each.headers["Access-Control-Allow-Origin"]
        assert ["Accept", "Origin"] == answers[0].headers.getall("Vary")

    async def test_options_without_preflight(self, http: ClientSession) -> None:
        """OPTIONS that is not a preflight is treated as any other method."""
        assert (
            404
            == (await http.options("/api/echo", headers={"Origin": "https://one.example"})).status
        )
        assert 200 == (await http.options("/api/in_thread", headers=self.PREFLIGHT)).status


class TestFailures:
    """What a caller gets if the host or the platform does not run a function, on command."""

    @pytest.fixture(autouse=True)
    async def _no_failures(self, http: ClientSession) -> AsyncIterator[None]:
        yield
        await http.delete("/_local/faults")

    @pytest.mark.parametrize(
        ("fault", "body", "content_type"),
        [
            pytest.param({"status": 429}, "", None, id="too busy"),
            pytest.param(
                {"status": 429, "headers": {"Retry-After": "7"}}, "", None, id="with Retry-After"
            ),
            pytest.param({"status": 500}, "", None, id="failed"),
            pytest.param(
                {"status": 503}, "Function host is not running.", "text/plain", id="starting"
            ),
            pytest.param(
                {"status": 502},
                "The specified CGI application encountered an error and the server"
                " terminated the process.",
                *("text/html",),
                id="crashed",
            ),
            pytest.param({"status": 504}, "", None, id="timed out"),
            pytest.param(
                {"status": 504, "body": "<p>late</p>", "content_type": "text/html"},
                *("<p>late</p>", "text/html"),
                id="a page of a proxy",
            ),
        ],
    )
    async def test_answer(
        self, http: ClientSession, fault: dict[str, Any], body: str, content_type: str | None
    ) -> None:
        """The answer is no problem document, and comes once."""
        assert 204 == (await http.post("/_local/faults", json=fault)).status

        failed = await http.get("/api/echo")
        again = await http.get("/api/echo")

        assert (fault["status"], body) == (failed.status, await failed.text())
        assert fault.get("headers", {}).get("Retry-After") == failed.headers.get("Retry-After")
        assert content_type == (failed.content_type if body else None)
        assert ("Content-Type" in failed.headers) == bool(body)
        assert 200 == again.status

    async def test_one_function(self, http: ClientSession) -> None:
        """A failure may be for the function of a name, and requests are counted for each."""
        await http.post("/_local/faults", json={"operation": "echo", "status": 429, "times": 2})

        statuses = [
            (await http.get(path)).status for path in ("/api/in_thread", "/api/echo/7", "/api/echo")
        ]

        assert [200, 429, 429] == statuses
        counts = await (await http.get("/_local/counts")).json()
        assert {"in_thread": 1, "echo": 2} == counts

    @pytest.mark.parametrize(("status", "readable"), [(429, False), (503, False), (500, True)])
    async def test_cross_origin(self, http: ClientSession, status: int, readable: bool) -> None:
        """A page reads nothing of a host that is busy or not running, but preflights pass."""
        headers = {"Origin": "https://one.example"}
        await http.post("/_local/faults", json={"status": status})

        preflight = await http.options("/api/echo", headers=headers | TestCors.PREFLIGHT)
        answer = await http.get("/api/echo", headers=headers)

        assert (204, status) == (preflight.status, answer.status)
        assert readable == ("Access-Control-Allow-Origin" in answer.headers)

    async def test_lost(self, http: ClientSession, host: RunningHost) -> None:
        """A connection may be cut, before the function runs or after."""
        before = host.printed().count("echo: INFO two")
        await http.post("/_local/faults", json={"reset": True})
        with pytest.raises(ClientConnectionError):
            await http.post("/api/echo")
        assert before == host.printed().count("echo: INFO two")

        await http.post("/_local/faults", json={"reset": True, "after": True})
        with pytest.raises(ClientConnectionError):
            await http.post("/api/echo")
        assert before + 1 == host.printed().count("echo: INFO two")

    async def test_not_a_failure(self, http: ClientSession) -> None:
        """What is misspelled is refused, not forgotten; other paths and names stay as they are."""
        assert 400 == (await http.post("/_local/faults", json={"state": 429})).status
        foreign = {"Host": "evil.example"}
        assert 403 == (await http.post("/_local/faults", json={}, headers=foreign)).status
        await http.post("/_local/faults", json={"status": 429})
        assert 404 == (await http.get("/api/none")).status
        assert 200 == (await http.get("/admin/host/status")).status
        assert 429 == (await http.get("/api/echo")).status


class TestTimers:
    """Timers run on request, and the rest of `/admin`."""

    async def test_run_now(self, http: ClientSession, host: RunningHost) -> None:
        """A timer runs on request, and has run when the answer comes."""
        answer = await http.post("/admin/functions/prune", json={})

        assert 202 == answer.status
        assert "Prune: INFO pruned past_due=False" in host.printed()

    async def test_failing_timer(self, http: ClientSession, host: RunningHost) -> None:
        """A timer's error is only in the log."""
        assert 202 == (await http.post("/admin/functions/broken", json={"input": ""})).status
        assert "timer broke" in host.printed()

    async def test_malformed(self, http: ClientSession) -> None:
        """The real host wants JSON, declared as JSON; a function with a URL is called there."""
        json_type = {"Content-Type": "application/json"}
        assert 415 == (await http.post("/admin/functions/Prune", data="{}")).status
        assert (
            400 == (await http.post("/admin/functions/Prune", data="{", headers=json_type)).status
        )
        assert 400 == (await http.post("/admin/functions/echo", json={})).status
        assert 404 == (await http.post("/admin/functions/none", json={})).status

    async def test_admin(self, http: ClientSession) -> None:
        """The functions and the state of the host can be asked for."""
        listed = await (await http.get("/admin/functions")).json()

        assert ["answers", "broken", "echo", "files"] == [each["name"] for each in listed][:4]
        assert {"state": "Running"} == await (await http.get("/admin/host/status")).json()

    def test_announced(self, host: RunningHost) -> None:
        """The host prints URLs and methods, and that timers do not run on schedule."""
        assert f"echo: [GET,POST] {host.url}/api/echo/{{id:int?}}" in host.printed()
        assert "Prune: timerTrigger, not run on schedule here" in host.printed()


class TestProcess:
    """How a host starts and stops."""

    async def test_finishes_requests_in_flight(self, tmp_path: Path) -> None:
        """SIGTERM and SIGINT end the host after the requests in flight."""
        write_app(tmp_path)
        with running(tmp_path) as host:
            pending = asyncio.create_task(get(host, "/api/slow"))
            while "slow began" not in host.printed():  # noqa: ASYNC110 - another process prints it
                await asyncio.sleep(0.02)
            host.process.send_signal(signal.SIGINT)

            assert (200, "done") == await pending
            assert 0 == host.process.wait(10)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            pytest.param({"SCHEDULE": None}, "Prune: %SCHEDULE% does not resolve", id="no setting"),
            pytest.param(
                {"SCHEDULE": "0 3 * * *"}, "Prune: .* is not a schedule", id="five fields"
            ),
            pytest.param({"SCHEDULE": 5}, "SCHEDULE must be a string", id="number"),
        ],
    )
    def test_bad_schedule_settings(
        self, tmp_path: Path, change: dict[str, Any], message: str
    ) -> None:
        """An app that cannot be served ends the start, with the reason."""
        values = {**SETTINGS["Values"], **change}
        values = {name: value for name, value in values.items() if value is not None}
        write_app(tmp_path, settings={"Values": values})

        host = start(tmp_path)

        assert 1 == host.process.wait(20)
        assert re.search(f"^The app cannot be served: .*{message}", host.printed(), re.MULTILINE)

    def test_port_in_use(self, tmp_path: Path) -> None:
        """A taken port is an error that names the port."""
        write_app(tmp_path)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            host = start(tmp_path, "--port", str(taken.getsockname()[1]))

            assert 1 == host.process.wait(20)
        assert "cannot be opened" in host.printed()

    def test_any_origin_with_credentials(self, tmp_path: Path) -> None:
        """As Core Tools, the host does not start with a rule that browsers would not follow."""
        write_app(tmp_path, settings={**SETTINGS, "Host": {"CORS": "*", "CORSCredentials": True}})

        host = start(tmp_path)

        assert 1 == host.process.wait(20)
        assert "CORSCredentials" in host.printed()
