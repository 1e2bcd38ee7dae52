"""How services are asked: again while they are busy or behind, and never for ever."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from infra.entra.directory import Graph
from infra.entra.rest import (
    ARRIVES_WITHIN,
    ATTEMPTS,
    Call,
    RefusedError,
    Service,
    UnreachableError,
)
from infra.entra.sign_in import AccessKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GONE = {"error": {"code": "Request_ResourceNotFound", "message": "Resource 'x' does not exist"}}
NO_APP = {
    "error": {
        "code": "Request_BadRequest",
        "message": "The appId 'x' of the service principal does not reference a valid application"
        " object.",
    }
}
NOT_HERE = {
    "error": {
        "code": "Authorization_RequestDenied",
        "message": "When using this permission, the backing application of the service principal"
        " being created must in the local tenant",
    }
}
NO_SCOPE = {
    "error": {
        "code": "InvalidValue",
        "message": "Property api.preAuthorizedApplications.delegatedPermissionIds has a Permission"
        " Id that cannot be found in the AppPermissions sets.",
    }
}
DENIED = {"error": {"code": "Authorization_RequestDenied", "message": "Insufficient privileges"}}
Answer = tuple[int, dict[str, str], Any]


class Script:
    """A service that gives answers in turn, the last one for ever; and what it was asked."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.asked: list[tuple[str, str]] = []
        self.waits: list[float] = []
        self.url = ""

    def service(self, **options: Any) -> Service:
        """Return a client of it, which notes how long it would wait."""
        key = AccessKey("d29ydGhsZXNz")
        return Service(self.url, key, sleep=self.waits.append, say=lambda _: None, **options)


@pytest.fixture
def script() -> Iterator[Script]:
    """A running service without answers."""
    script = Script()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            script.asked.append((self.command, self.path))
            keep = len(script.answers) == 1
            status, headers, body = script.answers[0] if keep else script.answers.pop(0)
            sent = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(sent))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(sent)

        do_GET = do_POST = do_PATCH = _answer  # noqa: N815 - their names there

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
            """Stay silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    script.url = f"http://127.0.0.1:{server.server_port}"
    yield script
    server.shutdown()
    thread.join()
    server.server_close()


def post(*, waits: bool = False) -> Call:
    """Return a call that makes something."""
    return Call("make it", "POST", "/v1.0/things", {"a": 1}, waits=waits)


@pytest.mark.parametrize("status", [429, 503])
def test_waits_as_told(script: Script, status: int) -> None:
    """A busy service says when to come back."""
    script.answers = [(status, {"Retry-After": "7"}, DENIED), (201, {}, {"id": "1"})]
    assert {"id": "1"} == script.service().send(post())
    assert [7] == script.waits


def test_waits_no_longer_than_a_minute(script: Script) -> None:
    """However long it says."""
    script.answers = [(429, {"Retry-After": "86400"}, {}), (200, {}, {})]
    script.service().send(post())
    assert [60] == script.waits


def test_gives_up(script: Script) -> None:
    """A service that stays busy is not asked for ever."""
    script.answers = [(503, {}, {})]
    with pytest.raises(RefusedError, match="503"):
        script.service().send(post())
    assert ATTEMPTS == len(script.asked)
    assert script.waits == sorted(script.waits)


@pytest.mark.parametrize(("method", "times"), [("POST", 1), ("PATCH", ATTEMPTS)])
def test_unknown_outcome(script: Script, method: str, times: int) -> None:
    """What may have been made is not made again."""
    script.answers = [(504, {}, b"<html>")]
    with pytest.raises(RefusedError, match="504"):
        script.service().send(Call("do it", method, "/x", {}))
    assert times == len(script.asked)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        pytest.param(404, GONE, id="not found"),
        pytest.param(400, NO_APP, id="no application"),
        pytest.param(403, NOT_HERE, id="not in the tenant"),
        pytest.param(400, NO_SCOPE, id="no scope"),
    ],
)
def test_new_objects_arrive(script: Script, status: int, body: Any) -> None:
    """What was made a moment ago is waited for, but only if the call refers to such a thing."""
    script.answers = [(status, {}, body), (status, {}, body), (201, {}, {"id": "1"})]
    assert {"id": "1"} == script.service().send(post(waits=True))

    script.answers = [(status, {}, body)]
    with pytest.raises(RefusedError):
        script.service().send(post())


def test_objects_that_never_arrive(script: Script) -> None:
    """After two minutes it is an error."""
    script.answers = [(404, {}, GONE)]
    with pytest.raises(RefusedError, match="Request_ResourceNotFound"):
        script.service().send(post(waits=True))
    assert ARRIVES_WITHIN <= sum(script.waits) <= ARRIVES_WITHIN + 20


def test_denied(script: Script) -> None:
    """A refusal that waiting does not change is told at once."""
    script.answers = [(403, {}, DENIED)]
    with pytest.raises(RefusedError, match="Insufficient privileges"):
        script.service().send(post(waits=True))
    assert 1 == len(script.asked)


def test_find(script: Script) -> None:
    """An object that is not there is None; that nobody may read it is an error."""
    script.answers = [(404, {}, GONE), (403, {}, DENIED)]
    service = script.service()
    assert service.find("/x") is None
    with pytest.raises(RefusedError):
        service.find("/x")


class TestPages:
    """Lists are read to their end, on the same host."""

    def test_all_pages(self, script: Script) -> None:
        """Links lead from page to page, in Graph's form and in that of ACS."""
        script.answers = [
            (200, {}, {"value": [{"id": 1}], "@odata.nextLink": f"{script.url}/x?skip=1"}),
            (200, {}, {"value": [{"id": 2}], "nextLink": "/x?skip=2&api-version=7"}),
            (200, {}, {"value": [{"id": 3}]}),
        ]
        service = script.service(query="api-version=7")
        assert [1, 2, 3] == [each["id"] for each in service.list("/x")]
        assert [
            ("GET", "/x?api-version=7"),
            ("GET", "/x?skip=1&api-version=7"),
            ("GET", "/x?skip=2&api-version=7"),
        ] == script.asked

    @pytest.mark.parametrize(
        "link", [lambda url: "https://evil.example/x", lambda url: f"{url}.evil.example/x"]
    )
    def test_other_host(self, script: Script, link: Callable[[str], str]) -> None:
        """The token is not taken to another host."""
        script.answers = [(200, {}, {"value": [], "nextLink": link(script.url)})]
        with pytest.raises(UnreachableError, match="another host"):
            list(script.service().list("/x"))

    def test_endless(self, script: Script) -> None:
        """A list without an end ends."""
        script.answers = [(200, {}, {"value": [], "nextLink": "/x"})]
        with pytest.raises(UnreachableError, match="pages"):
            list(script.service().list("/x"))


def test_not_json(script: Script) -> None:
    """A page of a proxy is not taken for an answer."""
    script.answers = [(200, {}, b"<html>")]
    with pytest.raises(UnreachableError, match="not an object"):
        script.service().send(post())


def test_nobody_there() -> None:
    """A service that cannot be reached is an error with its address."""
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:9"):
        Service("http://127.0.0.1:9", AccessKey("d29ydGhsZXNz")).find("/x")


def test_owners(script: Script) -> None:
    """Owners are shown by name and id; whoever may not read them goes on without."""
    owners = [
        {"id": "1", "userPrincipalName": "eve@contoso.example"},
        {"id": "2", "displayName": "Pipeline"},
    ]
    script.answers = [(200, {}, {"value": owners}), (403, {}, DENIED)]
    graph = Graph(script.service())
    assert ["eve@contoso.example (1)", "Pipeline (2)"] == graph.owners({"id": "a/b"})
    assert "/v1.0/applications/a%2Fb/owners" in script.asked[0][1]
    assert [] == graph.owners({"id": "a"})
