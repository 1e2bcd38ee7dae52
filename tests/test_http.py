"""Requests in, JSON or a problem out."""

from __future__ import annotations

import asyncio
import base64
import inspect
import json
import logging
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import azure.functions as func
import pytest

from local.functions.app import Context, TraceContext
from shared import audit, errors, http
from shared.errors import BrokerError, InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


REPOSITORY = Path(__file__).parent.parent
FAILING_APP = """
import azure.functions as func
from shared.http import answers_problems

app = func.FunctionApp(http_auth_level=func.AuthLevel.ANONYMOUS)


@app.route(route="fail")
@answers_problems("GET")
async def fail(req: func.HttpRequest) -> func.HttpResponse:
    raise RuntimeError("nobody thought of " + "this")
"""
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def request(method: str = "GET", body: bytes = b"", **headers: str) -> func.HttpRequest:
    return func.HttpRequest(method, "http://localhost/api/x", headers=headers, body=body)


def context(traceparent: str = "") -> Any:
    return Context("x", "invocation", TraceContext(traceparent, "", {}))


async def call(
    handler: Callable[[func.HttpRequest], Any],
    req: func.HttpRequest | None = None,
    *,
    traceparent: str = "",
    event: str | dict[str, str] | None = None,
) -> func.HttpResponse:
    endpoint = http.answers_problems("GET", "POST", event=event)(handler)
    return await endpoint(req or request(), context(traceparent))


async def succeed(_req: func.HttpRequest) -> func.HttpResponse:
    return http.json_response({"ok": True})


def find_all(name: str, document: Any) -> Iterator[dict[str, Any]]:
    """Yield the members with a name, wherever they are in a document."""
    for key, value in document.items() if isinstance(document, dict) else ():
        if key == name:
            yield value
        yield from find_all(name, value)


CLAIMS = '{"access_token": {"nbf": {"essential": true, "value": "1790000000"}}}'


def every_error() -> list[BrokerError]:
    """Return one of each class of the tree."""

    def classes(of: type[BrokerError]) -> list[type[BrokerError]]:
        public = [sub for sub in of.__subclasses__() if sub.__module__ == errors.__name__]
        return [each for sub in public for each in (sub, *classes(sub))]

    arguments: dict[type[BrokerError], dict[str, Any]] = {
        errors.RevokedTokenError: {"mark": 1_790_000_000},
        errors.InsufficientClaimsError: {"claims": CLAIMS},
        errors.StepUpRequiredError: {"claims": CLAIMS},
        errors.InsufficientScopeError: {"scope": "access_as_user"},
        errors.MethodNotAllowedError: {"allowed": ("GET",)},
    }
    return [
        each("why, for the log alone", **arguments.get(each, {})) for each in classes(BrokerError)
    ]


class TestProblems:
    """What the caller is told."""

    @pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__)
    async def test_each_error(self, error: BrokerError) -> None:
        """Fixed words, a status, a code; a challenge or a time to wait where the status has one."""

        async def fail(_req: func.HttpRequest) -> func.HttpResponse:
            raise error

        response = await call(fail, traceparent=f"00-{TRACE}-00f067aa0ba902b7-01")
        problem = json.loads(response.get_body())

        assert (error.status.value, error.code) == (response.status_code, problem["code"])
        assert (error.title, error.description) == (problem["title"], problem["detail"])
        assert TRACE == problem["traceId"]
        challenge = response.headers.get("WWW-Authenticate", "")
        encoded = challenge.partition('claims="')[2].partition('"')[0]
        assert error.claims == problem.get("claims")
        assert (error.claims or "") == base64.b64decode(encoded).decode()
        assert b"for the log alone" not in response.get_body()
        assert (error.status in {401, 403}) == ("WWW-Authenticate" in response.headers)
        may_pass = error.status in {429, 503, 504} or error.code == "identity_gone"
        assert may_pass == ("Retry-After" in response.headers)
        assert not re.search(r'["\\]', error.description), "it stands in a quoted string"

    def test_tree_in_the_docstring_is_complete(self) -> None:
        """The tree in the docstring has every class."""
        drawn = set(re.findall(r"\w+Error", errors.__doc__ or ""))

        assert drawn == {type(error).__name__ for error in every_error()} | {"BrokerError"}

    def test_contract_names_every_code(self) -> None:
        """The contract and the code have the same words."""
        contract = json.loads((REPOSITORY / "shared" / "openapi.json").read_text("utf-8"))
        responses = contract["components"]["responses"].values()
        schemas = [next(iter(r["content"].values()))["schema"] for r in responses]
        named = {code for s in schemas for code in s["allOf"][1]["properties"]["code"]["enum"]}

        assert named == {error.code for error in every_error()}

    def test_contract_names_every_header(self) -> None:
        """Pages of other origins can read each header that the contract describes, or any page."""
        contract = (REPOSITORY / "shared" / "openapi.json").read_text("utf-8")
        described = {
            header
            for responses in find_all("responses", json.loads(contract))
            for response in responses.values()
            for header in response.get("headers", ())
        }
        exposed = http.COMMON_HEADERS["Access-Control-Expose-Headers"].split(", ")

        # Allow says nothing that the contract does not; Cache-Control is always readable.
        assert described - {"Allow", "Cache-Control"} == set(exposed)

    @pytest.mark.parametrize(
        ("seconds", "least", "most"), [(0, 1, 2), (0.2, 1, 2), (7.1, 8, 12), (1e9, 45, 60)]
    )
    async def test_retry_after(self, seconds: float, least: int, most: int) -> None:
        """The caller waits from a second to a minute, and is not told the same as all others."""

        async def fail(_req: func.HttpRequest) -> func.HttpResponse:
            raise errors.UpstreamThrottledError("", retry_after=seconds)

        told = {int((await call(fail)).headers["Retry-After"]) for _ in range(100)}

        assert least <= min(told) < max(told) <= most

    async def test_unexpected_error(self, caplog: pytest.LogCaptureFixture) -> None:
        """The caller gets a trace id and nothing else; the log gets the places, and no texts."""
        responses: dict[str, func.HttpResponse] = {}

        async def fail(_req: func.HttpRequest) -> func.HttpResponse:
            # Put together, since the log has the lines of this file.
            detail = f"secret {'detail'}"
            try:
                return responses[detail]
            except KeyError as exc:
                raise RuntimeError(detail) from exc

        response = await call(fail)

        assert 500 == response.status_code
        assert "internal_error" == json.loads(response.get_body())["code"]
        assert b"secret" not in response.get_body()
        (logged,) = (
            record.getMessage() for record in caplog.records if "unforeseen" in record.message
        )
        assert ["RuntimeError", "KeyError"] == re.findall(r"^\w+Error$", logged, re.MULTILINE)
        assert 2 == logged.count(", in fail\n")
        assert "secret detail" not in logged

    async def test_deadline(self) -> None:
        """No request takes longer than a caller will wait."""

        async def hang(_req: func.HttpRequest) -> func.HttpResponse:
            await asyncio.sleep(60)
            return http.json_response({})

        endpoint = http.answers_problems("GET", seconds=0.01)(hang)

        assert 504 == (await endpoint(request(), context())).status_code


class TestEndpoint:
    """What every endpoint does before its handler."""

    async def test_other_methods(self) -> None:
        """It is 405, with the methods of the route; the handler is not called."""
        response = await call(succeed, request("DELETE"))

        assert (405, "GET, POST") == (response.status_code, response.headers["Allow"])

    async def test_options(self) -> None:
        """204 and the methods, no matter who asks."""
        response = await call(succeed, request("OPTIONS"), event="never_recorded")

        assert (204, "GET, POST") == (response.status_code, response.headers["Allow"])
        assert b"" == response.get_body()

    async def test_body_over_the_limit(self) -> None:
        """A body over the limit is 413, whatever it holds."""
        response = await call(succeed, request("POST", b" " * (16 * 1024 + 1)))

        assert 413 == response.status_code

    def test_the_worker_sees_the_endpoint(self) -> None:
        """The Functions worker gives `context` only to a function whose signature asks for it."""
        endpoint = http.answers_problems("GET")(succeed)

        assert ["req", "context"] == list(inspect.signature(endpoint).parameters)
        assert "succeed" == endpoint.__name__

    @pytest.mark.parametrize(
        ("from_host", "from_caller", "expected"),
        [
            (f"00-{TRACE}-00f067aa0ba902b7-01", f"00-{'a' * 32}-00f067aa0ba902b7-01", TRACE),
            ("", f"00-{TRACE}-00f067aa0ba902b7-01", TRACE),
            ("", f"00-{'0' * 32}-00f067aa0ba902b7-01", None),
            ("", f"00-{TRACE.upper()}-00f067aa0ba902b7-01", None),
            ("", "garbage\n", None),
            ("", "", None),
        ],
    )
    async def test_trace_id(self, from_host: str, from_caller: str, expected: str | None) -> None:
        """The host's comes first, so that its own logs are found by it; then the caller's."""
        response = await call(
            succeed,
            request("DELETE", traceparent=from_caller),
            traceparent=from_host,
        )

        trace_id = json.loads(response.get_body())["traceId"]
        assert re.fullmatch(r"[0-9a-f]{32}", trace_id)
        assert expected in {trace_id, None}


class TestAudit:
    """One line per decision."""

    @pytest.mark.parametrize(
        ("raised", "event", "level"),
        [
            (None, "it_happened", logging.INFO),
            (InvalidRequestError("why"), "request_refused", logging.WARNING),
            (errors.BusyError("why"), "request_failed", logging.ERROR),
        ],
    )
    async def test_line(
        self,
        caplog: pytest.LogCaptureFixture,
        raised: BrokerError | None,
        event: str,
        level: int,
    ) -> None:
        """JSON in the message itself, at a level that an operator can filter by."""
        caplog.set_level(logging.INFO)

        async def handler(_req: func.HttpRequest) -> func.HttpResponse:
            audit.note(object_id="somebody")
            if raised:
                raise raised
            return http.json_response({})

        await call(handler, event="it_happened")

        (record,) = caplog.records
        line = json.loads(record.getMessage())
        assert (event, level, "somebody", "handler") == (
            line["event"],
            record.levelno,
            line["object_id"],
            line["route"],
        )
        assert {"trace_id", "ms"} <= line.keys()
        if raised:
            assert (raised.code, "why", raised.status) == (
                line["code"],
                line["reason"],
                line["status"],
            )

    @pytest.mark.parametrize(("method", "event"), [("GET", "was_read"), ("POST", "was_written")])
    async def test_line_for_each_method(
        self, caplog: pytest.LogCaptureFixture, method: str, event: str
    ) -> None:
        """A route whose methods do different things has an event for each."""
        caplog.set_level(logging.INFO)

        await call(succeed, request(method), event={"GET": "was_read", "POST": "was_written"})

        assert event == json.loads(caplog.records[0].getMessage())["event"]

    @pytest.mark.parametrize("finished", [True, False])
    async def test_line_for_what_goes_on(
        self, caplog: pytest.LogCaptureFixture, finished: bool
    ) -> None:
        """The line of an erasure or revocation says whether anything is left to do."""
        caplog.set_level(logging.INFO)

        async def handler(_req: func.HttpRequest) -> func.HttpResponse:
            return http.done(finished)

        await call(handler, event="it_happened")

        assert finished is json.loads(caplog.records[0].getMessage())["finished"]

    async def test_probes_leave_no_line(self, caplog: pytest.LogCaptureFixture) -> None:
        """A route that decides nothing writes no line."""
        caplog.set_level(logging.INFO)

        await call(succeed)

        assert [] == caplog.records


class TestDone:
    """Answers to erasures and revocations."""

    def test_finished(self) -> None:
        """204, without a body."""
        response = http.done(finished=True, headers={"Revoked-Within": "900"})

        assert (204, b"", "900") == (
            response.status_code,
            response.get_body(),
            response.headers["Revoked-Within"],
        )

    def test_stored(self) -> None:
        """202: it is stored, and will be finished."""
        response = http.done(finished=False)

        assert 202 == response.status_code
        assert {"status": "accepted"} == json.loads(response.get_body())
        assert "no-store" == response.headers["Cache-Control"]


async def test_unexpected_error_over_http(tmp_path: Path) -> None:
    """A handler that fails in a way nobody thought of, in a functions host of its own."""
    (tmp_path / "host.json").write_text('{"version": "2.0"}')
    (tmp_path / "function_app.py").write_text(FAILING_APP)
    host = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "local.functions.host", "--app", str(tmp_path), "--port", "0"),
        cwd=REPOSITORY,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert host.stdout is not None
        while not (line := (await host.stdout.readline()).decode()).startswith("ready "):
            assert line, "the host ended"
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{line.split()[1]}/api/fail") as answer,
        ):
            problem = await answer.json(content_type=None)
    finally:
        host.terminate()
        output, _ = await host.communicate()

    assert (500, "internal_error") == (answer.status, problem["code"])
    assert problem["traceId"].encode() in output
    assert b"RuntimeError\\n" in output
    assert b"in fail" in output
    assert b"nobody thought of this" not in output
