"""The broker as a stranger meets it: what a case sends, and whether anything has come of it."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections import Counter
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from multidict import CIMultiDict

from local.stack import REPOSITORY
from tests.emulated import until
from tests.running import Answer, assert_problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from pathlib import Path

    from tests.running import Client, Running

BARE_CHALLENGE = 'Bearer realm="acs-token-broker"'
ERROR_CHALLENGE = re.compile(
    r'Bearer realm="acs-token-broker", error="([a-z_]+)", error_description="[^"\\]+"(, .*)?'
)
ERRORS = {"token_revoked": "insufficient_claims"}  # Where the challenge's word is another.
# No answer or log line may repeat a piece of this length of what a stranger has sent.
REPEATED = 24
EXAMINED = 4096
RAW_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Service:
    """The running broker, and what the services behind it have counted."""

    running: Running
    app: Client
    bystander: str = field(default_factory=lambda: str(uuid.uuid4()))  # Their object id.

    async def refuses(
        self,
        status: int,
        code: str,
        variants: Mapping[str, str],
        *,
        key_fetches: int = 0,
        method: str = "GET",
        path: str = "/api/token",
        **options: Any,
    ) -> None:
        """Send each variant of an access token; each is refused, and nothing has happened.

        Args:
            status: of each answer.
            code: of each answer.
            variants: what differs, and the token that is sent.
            key_fetches: how many times the broker may ask Entra for its keys, in all.
            method: the method of each request.
            path: the path of each request.
            options: more of aiohttp's arguments for each request.
        """
        assert variants
        async with self.not_logged(*variants.values()), self.untouched(key_fetches=key_fetches):
            for name, token in variants.items():
                with named(name):
                    answer = await self.app.call(method, path, token, **options)
                    self.check_refusal(answer, status, code, sent=[token])

    async def refuses_headers(
        self,
        status: int,
        code: str,
        variants: Mapping[str, str | list[str]],
        *,
        method: str = "GET",
        path: str = "/api/token",
    ) -> None:
        """Send each variant of the header `Authorization`; each is refused, and nothing happens.

        Args:
            status: of each answer.
            code: of each answer.
            variants: what differs, and the header's value, or several lines of it.
            method: the method of each request.
            path: the path of each request.
        """
        lines = {
            name: [value] if isinstance(value, str) else value for name, value in variants.items()
        }
        sent = [value for values in lines.values() for value in values]
        async with self.not_logged(*sent), self.untouched():
            for name, values in lines.items():
                headers = [("Authorization", value) for value in values]
                with named(name):
                    answer = await self.app.call(method, path, headers=headers)
                    self.check_refusal(answer, status, code, sent=values)

    async def raw(self, request: bytes) -> Answer:
        """Send bytes as they are, on a connection of their own, and return the answer."""
        url = urlsplit(self.running.host.url)
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        try:
            writer.write(request)
            async with asyncio.timeout(RAW_SECONDS):
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                status, *lines = head.strip().split("\r\n")
                headers: CIMultiDict[str] = CIMultiDict()
                for line in lines:
                    name, _, value = line.partition(": ")
                    headers.add(name, value)
                body = await reader.readexactly(int(headers.get("Content-Length", 0)))
        finally:
            writer.close()
        return Answer(int(status.split()[1]), headers, body.decode())

    async def accepts(self, variants: Mapping[str, str]) -> None:
        """Send each variant of an access token; each is exchanged for one of ACS."""
        assert variants
        for name, token in variants.items():
            with named(name):
                answer = await self.app.get("/api/token", token)
                assert 200 == answer.status, answer
                assert self.running.stack.acs.token_is_valid(answer.json["token"])

    def check_refusal(self, answer: Answer, status: int, code: str, *, sent: list[str]) -> None:
        """Check an answer that refuses a request: all that it has, and what it must not have.

        Args:
            answer: over HTTP.
            status: expected.
            code: expected.
            sent: texts of the request, of which no long piece may be repeated.
        """
        assert_problem(answer, status, code)
        check_challenge(answer.headers.get("WWW-Authenticate"), status, code)
        told = answer.text + "".join(f"{name}: {value}\n" for name, value in answer.headers.items())
        for text in sent:
            assert not any(piece in told for piece in pieces_of(text)), "it repeats what was sent"

    @asynccontextmanager
    async def untouched(self, *, key_fetches: int = 0) -> AsyncIterator[None]:
        """Check that what is done here reaches none of the services, and harms no other caller.

        Args:
            key_fetches: how many times the broker may ask Entra for its keys.
        """
        before = await self._bystander()
        counted = self.counts()
        yield
        calls = self.counts() - counted
        fetched = max(calls.pop("entra jwks", 0), calls.pop("entra openid_configuration", 0))
        assert {} == dict(calls), "another service was called"
        assert fetched <= key_fetches, "Entra was asked for its keys"
        assert before == await self._bystander(), "another caller was affected"

    @asynccontextmanager
    async def not_logged(self, *secrets: str) -> AsyncIterator[None]:
        """Check that the host prints no piece of what is sent here, and no control character."""
        line = len(self.running.host.output)
        yield
        # What comes out of the pipe after this has been printed after it.
        seen = self.logged_since(line).count(self.bystander)
        await self._bystander()
        await until(lambda: self.logged_since(line).count(self.bystander) > seen)
        logged = self.logged_since(line)
        assert logged.replace("\n", "").isprintable()
        for secret in secrets:
            assert not any(piece in logged for piece in pieces_of(secret)), "a token in the log"

    def counts(self) -> Counter[str]:
        """Return how many requests each of the services has had, for each operation."""
        stack = self.running.stack
        services = {
            "entra": stack.entra.faults,
            "acs": stack.acs.faults,
            "tables": stack.tables.faults,
            "blobs": stack.blobs.faults,
        }
        return Counter(
            {
                f"{name} {operation}": count
                for name, faults in services.items()
                for operation, count in faults.counts.items()
            }
        )

    async def events(self, name: str, *, least: int = 1) -> list[dict[str, Any]]:
        """Return the audit lines about an event, once the host has printed so many of them."""
        start = f'"event": "{name}"'
        await until(lambda: len(self._lines(start)) >= least)
        return [json.loads(line[line.index("{") :]) for line in self._lines(start)]

    def _lines(self, text: str) -> list[str]:
        return [line for line in self.running.host.output if text in line]

    async def settled(self) -> None:
        """Wait until the broker has nothing more to do in the background, and has said all."""
        counted = None
        while counted != (counted := self.counts()):  # noqa: ASYNC110 - nothing tells of the end
            await asyncio.sleep(0.2)

    def logged_since(self, line: int) -> str:
        """Return what the host has printed since its line with a number."""
        return "\n".join(self.running.host.output[line:])

    async def _bystander(self) -> str:
        """Return the ACS identity of somebody who does nothing wrong."""
        token = self.running.token_of_new_person(oid=self.bystander)
        answer = await self.app.get("/api/user", token)
        if answer.status == 404:
            answer = await self.app.post("/api/user", token)
        assert 200 == answer.status, answer
        return str(answer.json["user"]["communicationUserId"])


class AnotherService(Protocol):
    """Starts the broker once more, or the app in a folder, with other settings, for one test."""

    async def __call__(self, folder: Path = REPOSITORY, /, **settings: str) -> Service:
        """Start it. Everything that it calls works then."""


def check_challenge(challenge: str | None, status: int, code: str) -> None:
    """Check the `WWW-Authenticate` of a refusal: RFC 6750, section 3."""
    if status not in {401, 403}:
        assert challenge is None
    elif code == "missing_token":
        assert BARE_CHALLENGE == challenge
    else:
        match = ERROR_CHALLENGE.fullmatch(challenge or "")
        assert match is not None, challenge
        # A revocation is told as MSAL knows it: with the claims that a new token must satisfy.
        assert ERRORS.get(code, code) == match[1]
        assert code != "insufficient_scope" or ', scope="access_as_user"' == match[2]


def pieces_of(text: str) -> Iterator[str]:
    """Yield pieces of a text that say who has sent it, if they are found elsewhere."""
    for start in range(0, min(len(text), EXAMINED) - REPEATED + 1, REPEATED // 2):
        yield text[start : start + REPEATED]


def request(line: str, token: str, *headers: str) -> bytes:
    """Return a request as it goes over the wire.

    Args:
        line: method and path, such as "GET /api/token".
        token: an access token, or what stands in its place.
        headers: more lines; one that begins with "Host:" replaces the usual one.
    """
    own = any(each.startswith("Host:") for each in headers)
    host = () if own else ("Host: localhost",)
    lines = [f"{line} HTTP/1.1", *host, f"Authorization: Bearer {token}", *headers]
    return "".join(f"{each}\r\n" for each in [*lines, ""]).encode()


@contextmanager
def named(variant: str) -> Iterator[None]:
    """Say in a failure which variant of a case it is about."""
    try:
        yield
    except Exception as exc:
        exc.add_note(f"in the variant: {variant}")
        raise
