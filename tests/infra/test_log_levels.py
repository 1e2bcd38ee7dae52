from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOGGING = json.loads((ROOT / "host.json").read_text())["logging"]
TRIGGERS = {"route", "timer_trigger"}


def functions() -> list[str]:
    """Return the names of the app's functions, as in the host's log categories."""
    tree = ast.parse((ROOT / "function_app.py").read_text())
    return [
        node.name
        for node in tree.body
        if isinstance(node, ast.AsyncFunctionDef)
        for decorator in node.decorator_list
        if isinstance(decorator, ast.Call) and getattr(decorator.func, "attr", None) in TRIGGERS
    ]


def level_of(category: str) -> str:
    """Return the host's log level for a category: the longest prefix decides.

    https://learn.microsoft.com/azure/azure-functions/configure-monitoring#configure-log-levels
    """
    levels: dict[str, str] = dict(LOGGING["logLevel"])
    default = levels.pop("default")
    prefixes = [name for name in levels if category.lower().startswith(name.lower())]
    return levels[max(prefixes, key=len)] if prefixes else default


def test_functions() -> None:
    """The function above finds the app's functions."""
    assert {"token", "user", "prune_mappings", "back_up_mappings"} <= set(functions())


@pytest.mark.parametrize("name", functions())
def test_a_functions_own_lines(name: str) -> None:
    """A function's own lines are logged; the host's are not, since AppRequests has them."""
    assert level_of(f"Function.{name}.User") == "Information"
    assert level_of(f"Function.{name}") == "Warning"


@pytest.mark.parametrize(
    ("category", "what"),
    [("Host.Results", "AppRequests"), ("Host.Function.Console", "what is printed")],
)
def test_hosts_lines(category: str, what: str) -> None:
    """Requests, and what the worker prints, are logged."""
    assert level_of(category) == "Information", what


def test_no_leftover() -> None:
    """Every level is for an existing function, or for the host."""
    named = {name.split(".")[1] for name in LOGGING["logLevel"] if name.startswith("Function.")}
    assert set() == named - set(functions())


def test_sampled() -> None:
    """Sampling leaves out no audit line, but a flood of requests does not have a row for each."""
    sampling = LOGGING["applicationInsights"]["samplingSettings"]
    assert sampling["isEnabled"] is True
    assert {"Trace", "Exception"} == set(sampling["excludedTypes"].split(";"))
    assert 1 == sampling["maxTelemetryItemsPerSecond"]


def test_sampled_rows_count() -> None:
    """Queries that count requests know that a sampled row stands for several."""
    counting = {
        path.name: path.read_text()
        for path in (ROOT / "infra/queries").glob("*.kql")
        if "\nAppRequests\n" in f"\n{path.read_text()}"
    }
    assert {"alert-server-errors.kql", "alert-slow-requests.kql"} == counting.keys()
    for query in counting.values():
        assert "sum(ItemCount)" in query
        assert not re.search(r"count(if)?\(|percentile\(", query)
