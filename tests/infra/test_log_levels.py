from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOGGING = json.loads((ROOT / "host.json").read_text())["logging"]
TRIGGERS = {"route", "timer_trigger"}


def functions() -> list[str]:
    """Return the names of the functions of the app, as the host's log categories have them."""
    tree = ast.parse((ROOT / "function_app.py").read_text())
    return [
        node.name
        for node in tree.body
        if isinstance(node, ast.AsyncFunctionDef)
        for decorator in node.decorator_list
        if isinstance(decorator, ast.Call) and getattr(decorator.func, "attr", None) in TRIGGERS
    ]


def level_of(category: str) -> str:
    """Return the level from which on the host logs a category: the longest prefix decides.

    https://learn.microsoft.com/azure/azure-functions/configure-monitoring#configure-log-levels
    """
    levels: dict[str, str] = dict(LOGGING["logLevel"])
    default = levels.pop("default")
    prefixes = [name for name in levels if category.lower().startswith(name.lower())]
    return levels[max(prefixes, key=len)] if prefixes else default


def test_functions() -> None:
    """The functions are found."""
    assert {"token", "user", "prune_mappings"} <= set(functions())


@pytest.mark.parametrize("name", functions())
def test_a_functions_own_lines(name: str) -> None:
    """What a function logs arrives; that the host began it and ended it is told by AppRequests."""
    assert level_of(f"Function.{name}.User") == "Information"
    assert level_of(f"Function.{name}") == "Warning"


@pytest.mark.parametrize(
    ("category", "what"),
    [("Host.Results", "AppRequests"), ("Host.Function.Console", "what is printed")],
)
def test_hosts_lines(category: str, what: str) -> None:
    """Each request, and what the worker prints, arrives."""
    assert level_of(category) == "Information", what


def test_no_leftover() -> None:
    """Every level is of a function that there is, or of the host."""
    named = {name.split(".")[1] for name in LOGGING["logLevel"] if name.startswith("Function.")}
    assert set() == named - set(functions())


def test_not_sampled() -> None:
    """No audit line and no request is left out for want of room."""
    excluded = LOGGING["applicationInsights"]["samplingSettings"]["excludedTypes"].split(";")
    assert {"Request", "Trace", "Exception"} <= set(excluded)
