"""What is read of a request."""

from __future__ import annotations

import base64
import json
import re
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import azure.functions as func
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import requests
from shared.errors import InvalidRequestError, MissingTokenError, UnsupportedMediaTypeError

if TYPE_CHECKING:
    from shared.identifiers import Person

TENANT_ID, OBJECT_ID = (
    "3e7a1c52-90b4-4d6f-8a21-5c0d9e4b7f10",
    "7d2f6b1e-43c9-4a80-b5d7-0e91f2a6c834",
)
ACS_ID = "8:acs:ac5ac5ac-0000-4000-8000-000000000001_00000005-0000-0000-0000-000000000000"


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
    parsed = requests.TokenRequest.parse(req)
    minutes = None if parsed.lifetime is None else parsed.lifetime / timedelta(minutes=1)
    return parsed.scopes, minutes


class TestBearerToken:
    """The Authorization header, RFC 6750 section 2.1."""

    @pytest.mark.parametrize("value", ["Bearer a.b.c", "bearer a.b.c", "BEARER   a.b.c"])
    def test_takes(self, value: str) -> None:
        assert "a.b.c" == requests.bearer_token({"authorization": value})

    @pytest.mark.parametrize("value", ["", " ", "Bearer", "Bearer ", "Basic YTpi", "DPoP a.b.c"])
    def test_missing(self, value: str) -> None:
        """No token, or another scheme."""
        with pytest.raises(MissingTokenError):
            requests.bearer_token({"authorization": value})

    @pytest.mark.parametrize(
        "value", ["Bearer a, Bearer b", "BearerX a", "Bearer\ta", "a.b.c", "Basic x, Bearer y"]
    )
    def test_not_one_credential(self, value: str) -> None:
        """Two credentials, or something that is not a credential."""
        with pytest.raises(InvalidRequestError):
            requests.bearer_token({"authorization": value})

    @given(st.text())
    def test_anything(self, value: str) -> None:
        """Whatever the header holds, the result is a token or one of two errors."""
        try:
            token = requests.bearer_token({"authorization": value})
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
            requests.TokenRequest.parse(asking(query=query))

    def test_parameter_without_a_value(self) -> None:
        """The host drops it; the URL still has it."""
        req = func.HttpRequest("GET", "http://localhost/api/token?scope=", params={}, body=b"")

        with pytest.raises(InvalidRequestError):
            requests.TokenRequest.parse(req)

    def test_invalid_host_header(self) -> None:
        """The URL begins with the caller's Host header, which may be anything."""
        req = func.HttpRequest("GET", "http://[evil/api/token?scope=voip", params={}, body=b"")

        assert requests.TokenRequest(None, None) == requests.TokenRequest.parse(req)

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
            requests.TokenRequest.parse(asking(body))

    @pytest.mark.parametrize(
        "media_type", ["", "text/plain", "application/json; charset=utf-16", "multipart/form-data"]
    )
    def test_media_type(self, media_type: str) -> None:
        """A form of any page could send these without a preflight."""
        with pytest.raises(UnsupportedMediaTypeError):
            requests.TokenRequest.parse(asking(b"{}", media_type=media_type))

    def test_what_the_host_drops(self) -> None:
        """A chunked body does not arrive; asking for less must not be answered with more."""
        req = func.HttpRequest("POST", "/", headers={"Transfer-Encoding": "chunked"}, body=b"")

        with pytest.raises(InvalidRequestError):
            requests.TokenRequest.parse(req)

    def test_no_input(self) -> None:
        """A route that takes none refuses a query and a body, and nothing else."""
        requests.refuse_input(asking(query={}))
        requests.refuse_input(asking(b"{}"))
        requests.refuse_input(func.HttpRequest("DELETE", "http://localhost/api/user", body=b""))
        for given_input in (asking(query={"x": "1"}), asking(b'{"x": 1}')):
            with pytest.raises(InvalidRequestError):
                requests.refuse_input(given_input)


class TestUsersQuery:
    """Which people an administrator asks for."""

    def test_default(self) -> None:
        """Without parameters: the own tenant, everybody, a hundred at a time."""
        query = requests.UsersQuery.parse(asking(query={}))

        assert requests.UsersQuery("", None, "", None, 100) == query

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
        parsed = requests.UsersQuery.parse(asking(query=query))

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
            requests.UsersQuery.parse(asking(query=query))

    def test_continuation(self) -> None:
        """A continuation token is read back as it was written."""
        at = requests.Continuation(
            TENANT_ID, "active", {"PartitionKey": "1!8!U21pdGg-", "RowKey": "x"}
        )

        query = requests.UsersQuery.parse(asking(query={"continuationToken": str(at)}))

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
        at = requests.Continuation(TENANT_ID, None, {"PartitionKey": partition, "RowKey": row})

        assert re.fullmatch(r"[A-Za-z0-9_-]+", str(at))
        assert at == requests.Continuation.parse(str(at))

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
            requests.Continuation.parse(token)

    @given(st.text())
    def test_anything(self, token: str) -> None:
        """It is a token of ours, or an error that the caller is told."""
        with suppress(InvalidRequestError):
            assert requests.Continuation.parse(token)


class TestPersonOf:
    """Whom a route names."""

    @staticmethod
    def of(tenant_id: str, object_id: str) -> Person:
        route = {"tenantId": tenant_id, "objectId": object_id}
        return requests.person_of(
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

        assert ACS_ID == requests.adopted_identity(asking(body))

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
            requests.adopted_identity(asking(body))

    def test_media_type(self) -> None:
        """Only JSON: a form of any page could send something else."""
        body = json.dumps({"communicationUserId": ACS_ID}).encode()

        with pytest.raises(UnsupportedMediaTypeError):
            requests.adopted_identity(asking(body, media_type="text/plain"))


class TestHeldToken:
    """The Entra token for ACS that a caller may send."""

    @pytest.mark.parametrize(
        ("body", "token"),
        [(None, None), (b"", None), (b"{}", None), (b' {"accessToken": "a.b.c"}\n', "a.b.c")],
    )
    def test_good(self, body: bytes | None, token: str | None) -> None:
        """Nothing, an empty object, or one token."""
        assert token == requests.held_token(asking(body))

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
            requests.held_token(asking(body))

    def test_no_parameters(self) -> None:
        """A token in a URL would end up in logs."""
        for body in (None, b"{}"):
            with pytest.raises(InvalidRequestError):
                requests.held_token(asking(body, query={"accessToken": "a.b.c"}))

    def test_media_type(self) -> None:
        """Only JSON."""
        with pytest.raises(UnsupportedMediaTypeError):
            requests.held_token(asking(b'{"accessToken": "a"}', media_type="text/plain"))
