from __future__ import annotations

import ast
import json
import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
QUERIES = {path.stem: path.read_text() for path in (ROOT / "infra" / "queries").glob("*.kql")}
AUDIT = QUERIES.pop("audit")
TREES = [
    ast.parse(path.read_text())
    for path in [ROOT / "function_app.py", *(ROOT / "shared").rglob("*.py")]
]
AUDITING = {"record", "record_outside", "note", "decision", "timed"}


def calls(tree: ast.AST, names: set[str]) -> Iterator[ast.Call]:
    """Yield the calls of functions or methods that have one of these names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", None))
            if name in names:
                yield node


def strings(node: ast.AST) -> set[str]:
    """Return the string constants in an expression."""
    found = (getattr(inner, "value", None) for inner in ast.walk(node))
    return {value for value in found if isinstance(value, str)}


def events_in_the_code() -> set[str]:
    """Return the names of the events that the code may write."""
    found: set[str] = set()
    for tree in TREES:
        for call in calls(tree, {"record", "record_outside"}):
            if not isinstance(call.args[0], ast.JoinedStr):  # See `reported` below.
                found |= strings(call.args[0])
        for call in calls(tree, {"answers_problems"}):
            for word in call.keywords:
                if word.arg == "event":  # One for all methods, or one for each.
                    value = word.value
                    each = value.values if isinstance(value, ast.Dict) else [value]
                    found |= {name for node in each for name in strings(node)}
        for call in calls(tree, {"reported"}):
            (timer,) = strings(call.args[0])
            found |= {f"{timer}_{ended}" for ended in ("finished", "stopped", "failed")}
    return found


def fields_in_the_code() -> set[str]:
    """Return the names of the audit lines' fields, from the functions that write them."""
    found = {"event"}
    for tree in TREES:
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Report"):
                found |= {
                    item.target.id
                    for item in node.body
                    if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
                }
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found |= _fields_of(node)
    return found


def _fields_of(function: ast.AST) -> set[str]:
    audits = [
        call
        for call in calls(function, AUDITING)
        if ast.unparse(call.func).startswith(("audit.", "refusal_lines."))
    ]
    if not audits:
        return set()
    keywords = {word.arg for call in audits for word in call.keywords}
    timed = {name for call in calls(function, {"timed"}) for name in strings(call.args[0])}
    found = {name for name in keywords if name is not None} - {"level", "seconds_between"} | timed
    passed = {ast.unparse(node) for call in audits for node in ast.walk(call)}
    dicts = [node for call in audits for node in ast.walk(call) if isinstance(node, ast.Dict)]
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            if ast.unparse(node.targets[0]) in passed:
                dicts.append(node.value)
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == "noted":
            found |= strings(node.slice)
    return found | {name for node in dicts for key in node.keys if key for name in strings(key)}


def values_compared(query: str, column: str) -> set[str]:
    """Return the constants with which a query compares a column."""
    found: set[str] = set()
    for one, several in re.findall(rf'\b{column} (?:== "([^"]*)"|in \(([^)]*)\))', query):
        found |= {one} if one else set(re.findall(r'"([^"]*)"', several))
    return found


@pytest.fixture(scope="session")
def parsed(node: Callable[..., str]) -> dict[str, Any]:
    """The result of Microsoft's parser for each query, as it is deployed."""
    complete = {name: AUDIT + query for name, query in QUERIES.items()}
    answers: dict[str, Any] = json.loads(node("queries.mjs", given=json.dumps(complete)))
    return answers


class TestCode:
    """Queries use the names that the code writes, which are read from its source."""

    def test_reads_the_source(self) -> None:
        """The functions above find each way in which the source writes a line."""
        assert events_in_the_code() >= {
            "token_issued",  # An argument of the decorator.
            "request_refused",  # One of two.
            "prune_stopped",  # Put together from a timer's name.
            "user_erased",  # One of several methods'.
            "signing_keys_refreshed",
        }
        assert fields_in_the_code() >= {"route", "ms", "status", "acs_id", "age_hours", "rows"}

    def test_fields(self) -> None:
        """The code writes every field that audit.kql reads from a line."""
        read = set(re.findall(r"\bline\.(\w+)", AUDIT))
        assert read
        assert set() == read - fields_in_the_code()

    @pytest.mark.parametrize("name", QUERIES)
    def test_events(self, name: str) -> None:
        """The code writes every event that a query names."""
        assert set() == values_compared(QUERIES[name], "event") - events_in_the_code()

    def test_events_are_explained(self) -> None:
        """The operations page has a row for each event that the code writes."""
        page = (ROOT / "docs/operations.md").read_text()
        rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", page, re.MULTILINE)
        explained = {name for row in rows for name in re.findall(r"\w+", row)} - {"event"}
        assert events_in_the_code() == explained

    @pytest.mark.parametrize("name", QUERIES)
    def test_codes(self, name: str) -> None:
        """Every problem code that a query names is an error's."""
        errors = (ROOT / "shared/errors.py").read_text()
        codes = set(re.findall(r'^    code = "(\w+)"', errors, re.MULTILINE))
        assert set() == values_compared(QUERIES[name], "code") - codes

    @pytest.mark.parametrize("name", QUERIES)
    def test_brakes(self, name: str) -> None:
        """Every brake that a query names is one of the timers'."""
        code = "".join((ROOT / f"shared/{name}.py").read_text() for name in ("prune", "runs"))
        brakes = set(re.findall(r'BrakeError\("(\w+)"\)', code))
        assert set() == values_compared(QUERIES[name], "stopped") - brakes

    @pytest.mark.parametrize("name", QUERIES)
    def test_functions(self, name: str) -> None:
        """Every function that a query names is in function_app.py."""
        functions = set(
            re.findall(r"^async def (\w+)\(", (ROOT / "function_app.py").read_text(), re.MULTILINE)
        )
        assert set() == values_compared(QUERIES[name], "Name") - functions


class TestKql:
    """Queries pass Microsoft's own parser, with the tables that Azure Monitor documents."""

    @pytest.mark.parametrize("name", QUERIES)
    def test_no_problem(self, parsed: dict[str, Any], name: str) -> None:
        """Every query parses, and names only existing tables, columns and functions."""
        assert [] == parsed[name]["problems"]

    @pytest.mark.parametrize("name", [name for name in QUERIES if name.startswith("alert-")])
    def test_alerts_give_one_number(self, parsed: dict[str, Any], name: str) -> None:
        """An alert's query returns only the column `value`, for its threshold."""
        assert ["value"] == parsed[name]["columns"]

    def test_parser_objects(self, node: Callable[..., str]) -> None:
        """The parser finds a column and a table that do not exist."""
        wrong = {"column": f"{AUDIT}Audit | where nobody == 1", "table": "AppTrace | count"}
        answers = json.loads(node("queries.mjs", given=json.dumps(wrong)))
        assert all(answer["problems"] for answer in answers.values())


@pytest.mark.parametrize("name", ["audit", *QUERIES])
def test_loaded_once(name: str) -> None:
    """Exactly one place in the Bicep loads each query."""
    bicep = "".join(path.read_text() for path in (ROOT / "infra").rglob("*.bicep"))
    assert 1 == bicep.count(f"loadTextContent('../queries/{name}.kql')")


def test_placeholders() -> None:
    """The Bicep fills in the app and the ACS resource, and the workbook the rest."""
    workbook = (ROOT / "infra/modules/workbook.bicep").read_text()
    asked_for = set(re.findall(r"\{ name: '(\w+)', label:", workbook))
    for name, query in QUERIES.items():
        free = set(re.findall(r"\{(\w+)\}", AUDIT + query)) - {"app", "acs"}
        free -= {"package"} if name == "alert-package-written" else set()
        assert free <= (asked_for if name.startswith("question-") else set()), name


def test_asked() -> None:
    """The shell function of the operations page fills in each query that a page asks."""
    pages = {path.name: path.read_text() for path in (ROOT / "docs").glob("*.md")}
    ask = re.search(r"^ask\(\) \{.*?\}$", pages["operations.md"], re.MULTILINE | re.DOTALL)
    asked = sorted(
        {name for page in pages.values() for name in re.findall(r"ask\s([a-z]+-[a-z]+)", page)}
    )
    assert ask
    assert {"question-person", "workbook-slow"} <= set(asked)
    for name in asked:
        script = f"az() {{ printf '%s\n' \"$@\"; }}\n{ask[0]}\nask {name} 8:acs:somebody P7D"
        sent = subprocess.run(  # noqa: S603 - our own page
            ["bash", "-c", script],  # noqa: S607 - whichever is on PATH
            env={**os.environ, "AZURE_FUNCTION_NAME": "app", "ACS_RESOURCE_ID": "/subscriptions/x"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert "let Audit" in sent
        assert not re.search(r"\{\w+\}", sent), name
        assert ("8:acs:somebody" in sent) == name.startswith("question-")


def test_failing_requests() -> None:
    """The alert on failures counts the requests of each route that decides something."""
    app = ast.parse((ROOT / "function_app.py").read_text())
    deciding = {
        function.name
        for function in ast.walk(app)
        if isinstance(function, ast.AsyncFunctionDef)
        for decorator in function.decorator_list
        for call in calls(decorator, {"answers_problems"})
        if any(word.arg == "event" for word in call.keywords)
    }
    assert {"token", "users_one_renew"} <= deciding
    assert values_compared(QUERIES["alert-server-errors"], "Name") == deciding


def test_names_of_bicep() -> None:
    """The availability test has the same name in the query as in the Bicep."""
    alerts = (ROOT / "infra/modules/alerts.bicep").read_text()
    assert "var healthTestName = 'health-${appName}'" in alerts
    assert 'Name =~ "health-{app}"' in QUERIES["alert-logs-missing"]
