"""Requests in, JSON or a problem out."""

from __future__ import annotations

import asyncio
import base64
import inspect
import json
import logging
import re
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import aiohttp
import azure.functions as func
import pytest
from hypothesis import given
from hypothesis import strategies as st

from local.functions.app import Context, TraceContext
from shared import audit, errors, http
from shared.errors import BrokerError, InvalidRequestError, MissingTokenError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shared.identifiers import Person

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


class TestBearerToken:
    """The Authorization header, RFC 6750 section 2.1."""

    @pytest.mark.parametrize("value", ["Bearer a.b.c", "bearer a.b.c", "BEARER   a.b.c"])
    def test_takes(self, value: str) -> None:
        assert "a.b.c" == http.bearer_token({"authorization": value})

    @pytest.mark.parametrize("value", ["", " ", "Bearer", "Bearer ", "Basic YTpi", "DPoP a.b.c"])
    def test_missing(self, value: str) -> None:
        """No token, or another scheme."""
        with pytest.raises(MissingTokenError):
            http.bearer_token({"authorization": value})

    @pytest.mark.parametrize(
        "value", ["Bearer a, Bearer b", "BearerX a", "Bearer\ta", "a.b.c", "Basic x, Bearer y"]
    )
    def test_not_one_credential(self, value: str) -> None:
        """Two credentials, or something that is not a credential."""
        with pytest.raises(InvalidRequestError):
            http.bearer_token({"authorization": value})

    @given(st.text())
    def test_anything(self, value: str) -> None:
        """Whatever the header holds, the result is a token or one of two errors."""
        try:
            token = http.bearer_token({"authorization": value})
        except (MissingTokenError, InvalidRequestError):
            return
        assert "," not in token
        assert value.strip(" ").lower().startswith("bearer ")


class TestTokenRequest:
    """What a caller asks for: the query of a GET, or the JSON body of a POST."""

    @pytest.mark.parametrize(
        ("query", "scopes", "minutes"),
        [
            ({}, None, None),
            ({"scope": "voip"}, {"voip"}, None),
            ({"scope": "voip,chat,voip", "expiresInMinutes": "1440"}, {"voip", "chat"}, 1440),
        ],
    )
    def test_query(
        self, query: dict[str, str], scopes: set[str] | None, minutes: int | None
    ) -> None:
        """Both members are optional."""
        assert (scopes, minutes) == asked(asking(query=query))

    @pytest.mark.parametrize(
        "query",
        [
            {"scope": "video"},
            {"scope": "voip,"},
            {"scopes": "voip"},
            {"expiresInMinutes": "59"},
            {"expiresInMinutes": "1441"},
            {"expiresInMinutes": "060"},
            {"expiresInMinutes": "60,60"},
            {"expiresInMinutes": "sixty"},
            {"userId": "8:acs:x"},
        ],
    )
    def test_bad_query(self, query: dict[str, str]) -> None:
        """Unknown members, and values out of range."""
        with pytest.raises(InvalidRequestError):
            http.TokenRequest.parse(asking(query=query))

    def test_parameter_without_a_value(self) -> None:
        """The host drops it; the URL still has it."""
        req = func.HttpRequest("GET", "http://localhost/api/token?scope=", params={}, body=b"")

        with pytest.raises(InvalidRequestError):
            http.TokenRequest.parse(req)

    def test_invalid_host_header(self) -> None:
        """The URL begins with the caller's Host header, which may be anything."""
        req = func.HttpRequest("GET", "http://[evil/api/token?scope=voip", params={}, body=b"")

        assert http.TokenRequest(None, None) == http.TokenRequest.parse(req)

    @pytest.mark.parametrize(
        ("body", "scopes", "minutes"),
        [
            (b"", None, None),
            (b"{}", None, None),
            (b' {"scopes": ["chat", "chat"]} ', {"chat"}, None),
            (b'{"expiresInMinutes": 60}', None, 60),
            (b'{"expiresInMinutes": 60.0}', None, 60),
        ],
    )
    def test_body(self, body: bytes, scopes: set[str] | None, minutes: int | None) -> None:
        """An empty body asks for nothing in particular."""
        assert (scopes, minutes) == asked(asking(body))

    @pytest.mark.parametrize(
        "body",
        [
            b"[]",
            b" \n",
            b'{"scopes": "voip"}',
            b'{"scopes": []}',
            b'{"scopes": [1]}',
            b'{"scopes": ["video"]}',
            b'{"scopes": [' + b", ".join([b'"chat"'] * 17) + b"]}",
            b'{"expiresInMinutes": "60"}',
            b'{"expiresInMinutes": true}',
            b'{"expiresInMinutes": 60.5}',
            b'{"expiresInMinutes": 1e300}',
            b'{"expiresInMinutes": []}',
            b'{"userId": "8:acs:x"}',
        ],
    )
    def test_bad_body(self, body: bytes) -> None:
        """Anything but one strict object of known members."""
        with pytest.raises(InvalidRequestError):
            http.TokenRequest.parse(asking(body))

    @pytest.mark.parametrize(
        "media_type", ["", "text/plain", "application/json; charset=utf-16", "multipart/form-data"]
    )
    def test_media_type(self, media_type: str) -> None:
        """A form of any page could send these without a preflight."""
        with pytest.raises(errors.UnsupportedMediaTypeError):
            http.TokenRequest.parse(asking(b"{}", media_type=media_type))

    def test_what_the_host_drops(self) -> None:
        """A chunked body does not arrive; asking for less must not be answered with more."""
        req = func.HttpRequest("POST", "/", headers={"Transfer-Encoding": "chunked"}, body=b"")

        with pytest.raises(InvalidRequestError):
            http.TokenRequest.parse(req)

    def test_no_input(self) -> None:
        """A route that takes none refuses a query and a body, and nothing else."""
        http.refuse_input(asking(query={}))
        http.refuse_input(asking(b"{}"))
        http.refuse_input(func.HttpRequest("DELETE", "http://localhost/api/user", body=b""))
        for given_input in (asking(query={"x": "1"}), asking(b'{"x": 1}')):
            with pytest.raises(InvalidRequestError):
                http.refuse_input(given_input)


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


TENANT_ID, OBJECT_ID = (
    "3e7a1c52-90b4-4d6f-8a21-5c0d9e4b7f10",
    "7d2f6b1e-43c9-4a80-b5d7-0e91f2a6c834",
)
ACS_ID = "8:acs:ac5ac5ac-0000-4000-8000-000000000001_00000005-0000-0000-0000-000000000000"


class TestUsersQuery:
    """Which people an administrator asks for."""

    def test_default(self) -> None:
        """Without parameters: the own tenant, everybody, a hundred at a time."""
        query = http.UsersQuery.parse(asking(query={}))

        assert http.UsersQuery("", None, "", None, 100) == query

    @pytest.mark.parametrize(
        ("query", "expected"),
        [
            ({"tenantId": TENANT_ID.upper()}, {"tenant_id": TENANT_ID}),
            ({"state": "broken"}, {"state": "broken"}),
            ({"limit": "1000"}, {"limit": 1000}),
            ({"limit": "1"}, {"limit": 1}),
            ({"communicationUserId": ACS_ID}, {"acs_id": ACS_ID}),
            (
                {"communicationUserId": ACS_ID, "tenantId": TENANT_ID},
                {"acs_id": ACS_ID, "tenant_id": TENANT_ID},
            ),
        ],
        ids=str,
    )
    def test_good(self, query: dict[str, str], expected: dict[str, object]) -> None:
        """Each parameter is optional."""
        parsed = http.UsersQuery.parse(asking(query=query))

        assert expected == {name: getattr(parsed, name) for name in expected}

    @pytest.mark.parametrize(
        "query",
        [
            {"tenantId": "contoso.example"},
            {"tenantId": f"{TENANT_ID}' or true"},
            {"tenantId": f"{TENANT_ID},{TENANT_ID}"},
            {"state": "absent"},
            {"state": "ACTIVE"},
            {"state": "active' or true or state eq '"},
            {"limit": "0"},
            {"limit": "1001"},
            {"limit": "010"},
            {"limit": "-1"},
            {"limit": "ten"},
            {"limit": "1,1"},
            {"communicationUserId": "8:acs:x"},
            {"communicationUserId": "8:orgid:" + OBJECT_ID},
            {"communicationUserId": ACS_ID, "state": "active"},
            {"communicationUserId": ACS_ID, "limit": "10"},
            {"continuationToken": "x"},
            {"filter": "true"},
        ],
        ids=str,
    )
    def test_bad(self, query: dict[str, str]) -> None:
        """Unknown parameters, values of another form, and what does not go together."""
        with pytest.raises(InvalidRequestError):
            http.UsersQuery.parse(asking(query=query))

    def test_continuation(self) -> None:
        """A continuation token is read back as it was written."""
        at = http.Continuation(TENANT_ID, "active", {"PartitionKey": "1!8!U21pdGg-", "RowKey": "x"})

        query = http.UsersQuery.parse(asking(query={"continuationToken": str(at)}))

        assert at == query.start


class TestContinuation:
    """The opaque token for the next page."""

    @pytest.mark.parametrize(
        ("partition", "row"),
        [
            pytest.param("1!8!U21pdGg-", "1!12!QmVuMTg5OA--", id="Azure"),
            pytest.param("M2U3YTFjNTI=", "N2Qy+/==", id="Azurite"),
            pytest.param("1!8!U21pdGg-", None, id="without a row"),
        ],
    )
    def test_there_and_back(self, partition: str, row: str | None) -> None:
        """It has the form of Table Storage's, of which the row may be missing."""
        at = http.Continuation(TENANT_ID, None, {"PartitionKey": partition, "RowKey": row})

        assert re.fullmatch(r"[A-Za-z0-9_-]+", str(at))
        assert at == http.Continuation.parse(str(at))

    @pytest.mark.parametrize(
        "content",
        [
            "",
            "[]",
            "{}",
            '{"at": null}',
            '{"at": ["a", "b", "c"]}',
            '{"at": [null, "b", "c", null]}',
            '{"at": [1, "b", "c", null]}',
            '{"at": ["a b", "b", "c", null]}',
            '{"at": ["a", "' + "b" * 201 + '", "c", null]}',
            '{"at": ["a", "b", "c", null], "at": ["a", "b", "d", null]}',
        ],
    )
    def test_bad(self, content: str) -> None:
        """Whatever a caller makes up."""
        token = base64.urlsafe_b64encode(content.encode()).decode().rstrip("=")

        with pytest.raises(InvalidRequestError):
            http.Continuation.parse(token)

    @given(st.text())
    def test_anything(self, token: str) -> None:
        """It is a token of ours, or an error that the caller is told."""
        with suppress(InvalidRequestError):
            assert http.Continuation.parse(token)


class TestPersonOf:
    """Whom a route names."""

    @staticmethod
    def of(tenant_id: str, object_id: str) -> Person:
        route = {"tenantId": tenant_id, "objectId": object_id}
        return http.person_of(
            func.HttpRequest("GET", "http://localhost/", route_params=route, body=b"")
        )

    def test_person(self) -> None:
        """GUIDs may be in capitals; keys are in small letters."""
        assert (TENANT_ID, OBJECT_ID) == self.of(TENANT_ID.upper(), OBJECT_ID.upper())

    @pytest.mark.parametrize(
        "other", ["", "me", OBJECT_ID.replace("-", ""), f"{{{OBJECT_ID}}}", "a/b", f"{OBJECT_ID}\n"]
    )
    def test_bad(self, other: str) -> None:
        """Anything but a GUID could be another key of the table."""
        for ids in ((TENANT_ID, other), (other, OBJECT_ID)):
            with pytest.raises(InvalidRequestError):
                self.of(*ids)


class TestAdoptedIdentity:
    """The body of a PUT."""

    def test_identity(self) -> None:
        body = json.dumps({"communicationUserId": ACS_ID}).encode()

        assert ACS_ID == http.adopted_identity(asking(body))

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{}",
            b"[]",
            b'{"communicationUserId": null}',
            b'{"communicationUserId": ["8:acs:x"]}',
            b'{"communicationUserId": "8:acs:x"}',
            b'{"communicationUserId": "8:orgid:7d2f6b1e-43c9-4a80-b5d7-0e91f2a6c834"}',
            json.dumps({"communicationUserId": f"{ACS_ID}\n"}).encode(),
            json.dumps({"communicationUserId": ACS_ID, "id": ACS_ID}).encode(),
            json.dumps({"id": ACS_ID}).encode(),
        ],
    )
    def test_bad(self, body: bytes) -> None:
        """Anything but one communicationUserId."""
        with pytest.raises(InvalidRequestError):
            http.adopted_identity(asking(body))

    def test_media_type(self) -> None:
        """Only JSON: a form of any page could send something else."""
        body = json.dumps({"communicationUserId": ACS_ID}).encode()

        with pytest.raises(errors.UnsupportedMediaTypeError):
            http.adopted_identity(asking(body, media_type="text/plain"))


class TestHeldToken:
    """The Entra token for ACS that a caller may send."""

    @pytest.mark.parametrize(
        ("body", "token"),
        [(None, None), (b"", None), (b"{}", None), (b' {"accessToken": "a.b.c"}\n', "a.b.c")],
    )
    def test_good(self, body: bytes | None, token: str | None) -> None:
        """Nothing, an empty object, or one token."""
        assert token == http.held_token(asking(body))

    @pytest.mark.parametrize(
        "body",
        [
            b"[]",
            b"null",
            b'{"accessToken": null}',
            b'{"accessToken": ""}',
            b'{"accessToken": 5}',
            b'{"accessToken": "a", "accessToken": "b"}',
            b'{"accessToken": "a", "scopes": ["voip"]}',
            b'{"AccessToken": "a"}',
        ],
    )
    def test_bad(self, body: bytes) -> None:
        """Anything else."""
        with pytest.raises(InvalidRequestError):
            http.held_token(asking(body))

    def test_no_parameters(self) -> None:
        """A token in a URL would end up in logs."""
        for body in (None, b"{}"):
            with pytest.raises(InvalidRequestError):
                http.held_token(asking(body, query={"accessToken": "a.b.c"}))

    def test_media_type(self) -> None:
        """Only JSON."""
        with pytest.raises(errors.UnsupportedMediaTypeError):
            http.held_token(asking(b'{"accessToken": "a"}', media_type="text/plain"))


def asking(
    body: bytes | None = None,
    *,
    query: dict[str, str] | None = None,
    media_type: str = "application/json",
) -> func.HttpRequest:
    return func.HttpRequest(
        "GET" if body is None else "POST",
        f"http://localhost/api/token?{urlencode(query or {})}",
        headers={"Content-Type": media_type},
        params=query,
        body=body or b"",
    )


def asked(req: func.HttpRequest) -> tuple[frozenset[str] | None, float | None]:
    parsed = http.TokenRequest.parse(req)
    minutes = None if parsed.lifetime is None else parsed.lifetime / timedelta(minutes=1)
    return parsed.scopes, minutes


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
