"""The network between the processes and the services: slow, lossy, and late.

A call is planned when it is sent: when it arrives and is applied, when its answer comes back, and
what goes wrong with it. A caller that gives up takes nothing back: its call is applied all the
same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from azure.communication.identity import CommunicationUserIdentifier
from azure.core.exceptions import (
    AzureError,
    HttpResponseError,
    ServiceRequestError,
    ServiceResponseError,
)

from tests.simulation.virtual_time import OWNER, Owner

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from random import Random

    from tests.simulation.virtual_time import VirtualLoop

EPOCH = datetime(2026, 3, 1, tzinfo=UTC)
EPOCH_SECONDS = int(EPOCH.timestamp())
LATEST = 45.0  # seconds: how long a call may wander about after its caller gave up
GIVES_UP = 1.5  # seconds: a call that takes longer than this counts as a fault
FAULTS = (
    *("request lost", "request reset", "answer lost", "answer reset", "answer reset"),
    *("doubled", "doubled", "refused", "refused", "failed after", "failed after"),
    *("applied late", "applied late", "answered late", "crash before", "crash after"),
)
OUTAGES = ("request lost", "refused", "answer lost", "answer reset", "applied late")
STATUSES = (500, 503, 429)
# In a trace, an identity is "#7" and a person "a0".
_SHORTER = re.compile(
    r"8:acs:[-0-9a-f]{36}_0*|7e4a4700-[-0-9a-f]{27}_|([a-d]\d)000000-[-0-9a-f]{27}"
)


@dataclass(slots=True)
class Outage:
    """A time in which every call goes the same wrong way; it begins with a call."""

    first_call: int
    seconds: float
    service: str  # "table", "acs" or "both"
    kind: str  # One of OUTAGES.
    odd_machines: bool  # Only machines with an odd number suffer, as in a split network.
    until: float | None = None


@dataclass(slots=True)
class Weather:
    """How the network behaves in a schedule while it is bad."""

    fault_rate: float = 0.0  # Of all calls.
    slow_rate: float = 0.0
    slowest: float = 0.0  # seconds
    slow_service: str = "both"
    outages: list[Outage] = field(default_factory=list)


class Machine(Owner):
    """One process of the broker, as the network sees it: alive or dead, with its own clock."""

    __slots__ = ("dead", "loop", "name", "offset")

    def __init__(self, name: str, loop: VirtualLoop, offset: float) -> None:
        super().__init__()
        self.name = name
        self.loop = loop
        self.offset = timedelta(seconds=offset)
        self.dead = False

    def clock(self) -> datetime:
        """Return the time on this machine's own clock."""
        return EPOCH + timedelta(seconds=self.loop.now) + self.offset


class Network:
    """Carries calls from machines to services, and answers back.

    A machine's death is modelled from outside: nothing that it sends leaves it any more, and no
    answer reaches it. Its tasks end by their own time limits, and can change nothing.
    """

    def __init__(self, loop: VirtualLoop, rng: Random, weather: Weather) -> None:
        self.loop = loop
        self.calls = 0
        self.faults = 0
        self.trace: list[str] | None = None
        self.is_calm = False
        self.people = 0  # How many there are.
        self.on_death: Callable[[Machine], None] = lambda _: None
        self._rng = rng
        self._weather = weather
        self._stamps: dict[int, Any] = {}

    def log(self, text: str) -> None:
        """Add a line to the trace, if there is one."""
        if self.trace is not None:
            self.trace.append(f"{self.loop.now:9.3f}  {_SHORTER.sub(_shorter, text)}")

    def now(self) -> datetime:
        """Return the true time, which is also that of the table and of Entra."""
        return EPOCH + timedelta(seconds=self.loop.now)

    def stamp(self) -> Any:
        """Return what `raw_response_hook` is given for an answer made now."""
        second = int(self.loop.now)
        found = self._stamps.get(second)
        if found is None:
            date = format_datetime(EPOCH + timedelta(seconds=second), usegmt=True)
            response = SimpleNamespace(headers={"Date": date})
            found = self._stamps[second] = SimpleNamespace(http_response=response)
        return found

    def send(
        self,
        machine: Machine,
        service: str,
        apply: Callable[..., Any],
        args: tuple[Any, ...],
        hook: Callable[[Any], None] | None = None,
    ) -> asyncio.Future[Any]:
        """Send a call; the future has its answer, or never ends.

        Args:
            machine: who calls.
            service: "table" or "acs".
            apply: what the service does, at once; it returns the answer, or an error.
            args: what `apply` is given.
            hook: is given the answer's stamp.
        """
        self.calls += 1
        loop = self.loop
        future = loop.create_future()
        if machine.dead:
            return future
        call = (machine, future, apply, args, hook)
        rng = self._rng
        drawn = rng.random()
        if self.is_calm:
            loop.happen_later(0.002 + 0.01 * drawn, self._arrive, call, 0.002 + 0.007 * drawn)
            return future
        weather = self._weather
        if weather.outages and self._is_out(service, call):
            return future
        if drawn < weather.fault_rate:
            self._fault(call, FAULTS[int(drawn / weather.fault_rate * len(FAULTS))])
            return future
        request = 0.001 + 0.02 * rng.random()
        answer = request * drawn
        is_slow = weather.slow_service in {service, "both"}
        if is_slow and weather.slow_rate and rng.random() < weather.slow_rate:
            share = rng.random()
            slow = weather.slowest * rng.random()
            request, answer = request + slow * share, answer + slow * (1 - share)
            self.faults += slow > GIVES_UP
        loop.happen_later(request, self._arrive, call, answer)
        return future

    def _is_out(self, service: str, call: Any) -> bool:
        for outage in self._weather.outages:
            if (
                self._is_on(outage)
                and outage.service in {service, "both"}
                and (not outage.odd_machines or int(call[0].name[1:]) % 2)
            ):
                self._fault(call, outage.kind)
                return True
        return False

    def _is_on(self, outage: Outage) -> bool:
        if self.calls < outage.first_call:
            return False
        if outage.until is None:
            outage.until = self.loop.now + outage.seconds
        return self.loop.now < outage.until

    def _fault(self, call: Any, kind: str) -> None:  # noqa: C901 - a table of faults
        self.faults += 1
        machine, rng, loop = call[0], self._rng, self.loop
        self.log(f"{machine.name}  !! {kind}: {_shown(call)}") if self.trace is not None else None
        request, answer = 0.02 * rng.random(), 0.02 * rng.random()
        match kind:
            case "request lost":
                pass
            case "request reset":
                error: Exception = ServiceRequestError("the connection was reset")
                loop.happen_later(request, self._answer, call, error, None)
            case "answer lost":
                loop.happen_later(request, self._arrive, call, None)
            case "answer reset":
                loop.happen_later(request, self._arrive, call, None)
                error = ServiceResponseError("the connection was reset")
                loop.happen_later(request + answer, self._answer, call, error, None)
            case "doubled":
                again = rng.random() ** 3 * LATEST
                loop.happen_later(request, self._arrive, call, answer)
                loop.happen_later(request + again, self._arrive, call, None)
            case "refused":
                error = _refusal(rng.choice(STATUSES))
                loop.happen_later(request, self._answer, call, error, self.stamp())
            case "failed after":
                error = _refusal(rng.choice(STATUSES))
                loop.happen_later(request, self._arrive, call, None)
                loop.happen_later(request + answer, self._answer, call, error, self.stamp())
            case "applied late":
                loop.happen_later(rng.random() * LATEST, self._arrive, call, answer)
            case "answered late":
                loop.happen_later(request, self._arrive, call, rng.random() ** 2 * LATEST)
            case "crash before":
                self.kill(machine)
            case "crash after":
                loop.happen_later(request + rng.random() ** 4 * LATEST, self._arrive, call, None)
                self.kill(machine)

    def kill(self, machine: Machine) -> None:
        """End a process at this moment."""
        if not machine.dead:
            machine.dead = True
            self.faults += self.people  # Each may be in the middle of a creation.
            self.log(f"{machine.name}  xx killed") if self.trace is not None else None
            self.on_death(machine)

    def stand_still(self, machine: Machine, seconds: float, *, is_frozen: bool) -> None:
        """Let a process do nothing for a while; if it is frozen, its clock stands still as well."""
        self.faults += self.people
        self.log(f"{machine.name}  .. stands still for {seconds} s, frozen: {is_frozen}")

        def thaw() -> None:
            machine.lost += seconds * is_frozen

        machine.still_until = self.loop.now + seconds
        self.loop.happen_later(seconds, thaw)

    def _arrive(self, call: Any, answer: float | None) -> None:
        result = call[2](*call[3])
        if self.trace is not None:
            self.log(f"{call[0].name}  {_shown(call)} -> {_shown_result(result)}")
        if answer is not None:
            self.loop.happen_later(answer, self._answer, call, result, self.stamp())

    def _answer(self, call: Any, result: Any, stamp: Any) -> None:
        machine, future, _, _, hook = call
        if future.done() or machine.dead:
            return
        if machine.still_until > self.loop.now:
            wait = machine.still_until - self.loop.now
            self.loop.happen_later(wait, self._answer, call, result, stamp)
            return
        if hook is not None and stamp is not None:
            owner = OWNER.set(machine)
            hook(stamp)
            OWNER.reset(owner)
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)


def error(kind: type[AzureError], status: int, code: object = None) -> AzureError:
    """Return an error as the SDK raises it."""
    made: Any = kind(f"answered {status}")
    made.status_code = status
    made.response = SimpleNamespace(headers={})
    if code is not None:
        made.error_code = code
    return made  # type: ignore[no-any-return]


def _shorter(match: re.Match[str]) -> str:
    return match[1] or ("#" if match[0].startswith("8:") else "")


def _refusal(status: int) -> AzureError:
    return error(HttpResponseError, status, "SimulatedError")


def _shown(call: Any) -> str:
    arguments = " ".join(_shown_argument(each) for each in call[3] if each is not None)
    return f"{call[2].__qualname__.removeprefix('Server')} {arguments}"


def _shown_argument(value: Any) -> str:
    if isinstance(value, dict):
        left_out = {"PartitionKey", "schema", "createdOn", "tenantId", "objectId"}
        shown = {
            name: each.isoformat()[5:23] if isinstance(each, datetime) else each
            for name, each in value.items()
            if name not in left_out and each is not None
        }
        return str(shown)
    if isinstance(value, list):
        return "[" + ", ".join(map(_shown_argument, value)) + "]"
    return str(value)


def _shown_result(result: Any) -> str:
    if isinstance(result, AzureError):
        return f"{type(result).__name__} {getattr(result, 'status_code', '')}"
    if isinstance(result, tuple) and isinstance(result[0], list):
        return f"{_shown_argument(result[0])}, next {result[1]}"
    if isinstance(result, CommunicationUserIdentifier):
        return result.properties["id"]
    return "ok" if result is None else _shown_argument(result)
