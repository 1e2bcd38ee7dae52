"""Loads a functions app of the Python v2 model, as the Functions host and its worker do."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import re
import sys
import threading
import uuid
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from azure.functions import FunctionRegister

from local.functions.aspnet import Route

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

CRON = re.compile(r"[0-9*/,-]+( [0-9*/,-]+){3}( [0-9A-Za-z*/,-]+){2}")


class AppError(Exception):
    """The app cannot be served; the message says why."""


@dataclass(frozen=True, slots=True)
class TraceContext:
    """The W3C trace that an invocation belongs to."""

    trace_parent: str
    trace_state: str
    attributes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Context:
    """The `context` argument of a function, with the same attributes as the worker's."""

    function_name: str
    function_directory: str
    trace_context: TraceContext
    invocation_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    thread_local_storage: threading.local = field(default_factory=threading.local)
    retry_context: None = None


@dataclass(slots=True)
class Invocation:
    """One call of a function; work that outlives it still sees that it has ended."""

    function: str
    ended: bool = False


# Tasks that an invocation starts inherit this, as they inherit the invocation's id in the worker.
current_invocation: ContextVar[Invocation | None] = ContextVar("invocation", default=None)


@dataclass(frozen=True, slots=True)
class Function:
    """One function of the app. Without a route it is a timer; without methods it takes any."""

    name: str
    call: Callable[..., Any]
    argument: str
    takes_context: bool
    route: Route | None
    methods: frozenset[str]

    async def run(self, value: Any, context: Context) -> Any:  # noqa: ANN401 - the app's own types
        """Call the function, in a thread if it is not async, and return what it returns."""
        invocation = Invocation(self.name)
        current_invocation.set(invocation)
        arguments = {self.argument: value}
        if self.takes_context:
            arguments["context"] = context
        try:
            if inspect.iscoroutinefunction(self.call):
                return await self.call(**arguments)
            return await asyncio.to_thread(self.call, **arguments)
        finally:
            invocation.ended = True


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


def load_functions(folder: Path, prefix: str, settings: Mapping[str, str]) -> list[Function]:
    """Import an app's function_app.py and return its functions, in the order they are tried.

    Raises:
        AppError: there is no app, or it has a trigger, route or schedule that cannot be served.
    """
    if not (folder / "function_app.py").is_file():
        raise AppError(f"there is no function_app.py in {folder}")
    sys.path.insert(0, str(folder))
    members = vars(importlib.import_module("function_app")).values()
    apps = [each for each in members if isinstance(each, FunctionRegister)]
    if len(apps) != 1:
        raise AppError(f"function_app.py must define one function app, but defines {len(apps)}")
    functions = []
    for indexed in apps[0].get_functions():
        name = str(indexed.get_function_name())
        bindings = {each["type"]: each for each in map(json.loads, indexed.get_raw_bindings())}
        unknown = bindings.keys() - {"httpTrigger", "http", "timerTrigger"}
        if unknown:
            raise AppError(f"{name}: {', '.join(sorted(unknown))} is not served here")
        route = None
        trigger = bindings.get("httpTrigger") or bindings["timerTrigger"]
        call = indexed.get_user_function()
        parameters = inspect.signature(call).parameters.keys()
        if parameters - {"context"} != {trigger["name"]}:
            raise AppError(f"{name} must take one argument that is called {trigger['name']!r}")
        try:
            if trigger["type"] == "httpTrigger":
                route = Route.parse(f"{prefix}/{trigger.get('route') or name}".removeprefix("/"))
            else:
                check_schedule(trigger["schedule"], settings)
        except ValueError as exc:
            raise AppError(f"{name}: {exc}") from exc
        methods = frozenset(str(method).upper() for method in trigger.get("methods") or ())
        takes_context = "context" in parameters
        functions.append(Function(name, call, trigger["name"], takes_context, route, methods))
    return sorted(functions, key=lambda function: function.name.lower())


def check_schedule(schedule: str, settings: Mapping[str, str]) -> None:
    """Check a timer's schedule: six fields of NCRONTAB, or a %SETTING% that holds them.

    Raises:
        ValueError: the setting is missing, or its value is not a schedule.
    """
    for name in re.findall("%([^%]+)%", schedule):
        if name not in settings:
            raise ValueError(f"%{name}% does not resolve to a value")
        schedule = schedule.replace(f"%{name}%", settings[name])
    if not CRON.fullmatch(schedule.strip()):
        raise ValueError(f"{schedule!r} is not a schedule (second minute hour day month weekday)")
