from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 13),
    reason="LEFT OUT: Microsoft's azure-functions-runtime exists for Python 3.13 and later only",
)

REPOSITORY = Path(__file__).parents[2]

SMALL_APP = """
import azure.functions as func

app = func.FunctionApp(http_auth_level=func.AuthLevel.ANONYMOUS)

@app.route(route="echo", methods=["POST"])
async def echo(req: func.HttpRequest, context: func.Context) -> func.HttpResponse:
    return func.HttpResponse(
        f"{req.get_body().decode()} {req.params} {req.headers['x-name']} {req.route_params} "
        f"{context.function_name} {context.trace_context.trace_parent}",
        status_code=201, headers={"X-Name": "value"},
    )

@app.route(route="in_thread")
def in_thread(req: func.HttpRequest) -> func.HttpResponse:
    raise RuntimeError("broken")

@app.timer_trigger(schedule="0 0 3 * * *", arg_name="timer")
async def tick(timer: func.TimerRequest) -> None:
    assert timer.past_due is False
"""


OUTLIVED = """
import asyncio, logging
import azure.functions as func
from shared import audit

app = func.FunctionApp(http_auth_level=func.AuthLevel.ANONYMOUS)

@app.route(route="outlived")
async def outlived(req: func.HttpRequest) -> func.HttpResponse:
    began = asyncio.Event()
    async def work() -> None:
        audit.record("in_time", {})
        began.set()
        await asyncio.sleep(0.05)
        logging.error("any late record")
        audit.record("too_late", {"acs_id": "8:acs:1"})
    with audit.decision():
        task = asyncio.create_task(work())
        await began.wait()
    return func.HttpResponse("done")
"""


def run(folder: Path, calls: list[dict[str, Any]], **settings: str) -> dict[str, Any]:
    """Load an app in Microsoft's runtime, make calls, and return what the worker program prints."""
    worker = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, str(Path(__file__).with_name("worker.py")), str(folder)],
        input=json.dumps(calls),
        env={**os.environ, **settings},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert 0 == worker.returncode, worker.stderr
    *printed, result = worker.stdout.splitlines()
    return {**json.loads(result), "printed": printed}


def http(function: str, method: str = "GET", **request: Any) -> dict[str, Any]:
    """Return a call with an HTTP request."""
    url = f"http://localhost:7071/api/{function}"
    return {"function": function, "method": method, "url": url, **request}


class TestSmallApp:
    """The worker program itself."""

    def test_calls(self, tmp_path: Path) -> None:
        """Requests go in, answers and errors come out, and timers run."""
        (tmp_path / "function_app.py").write_text(SMALL_APP)

        result = run(
            tmp_path,
            [
                http("echo", "POST", body="hi", query={"a": "1"}, headers={"x-name": "n"}),
                http("in_thread"),
                {"function": "tick"},
            ],
        )

        answers = result["answers"]
        assert {"echo", "in_thread", "tick"} == result["functions"].keys()
        assert 201 == answers[0]["status"]
        assert "value" == answers[0]["headers"]["X-Name"]
        trace = f"00-{'a' * 32}-{'b' * 16}-01"
        assert f"hi {{'a': '1'}} n {{}} echo {trace}" == answers[0]["body"]
        assert "broken" in answers[1]["error"]
        assert {"status": 0, "headers": {}, "body": ""} == answers[2]

    def test_app_that_does_not_load(self, tmp_path: Path) -> None:
        """An error of the app while it is imported fails the run, and is shown."""
        (tmp_path / "function_app.py").write_text("raise RuntimeError('not today')")

        with pytest.raises(AssertionError, match="not today"):
            run(tmp_path, [])


class TestLog:
    """Which lines reach an operator once an invocation has ended."""

    def test_outlived(self, tmp_path: Path) -> None:
        """The host would drop each late record; the audit line is printed, and so arrives."""
        (tmp_path / "function_app.py").write_text(OUTLIVED)

        result = run(
            tmp_path,
            [{"function": "outlived", "listen_seconds": 1}],
            PYTHONPATH=str(REPOSITORY),
        )

        assert '{"event": "in_time"}' in result["taken"]
        assert "any late record" in result["dropped"]
        assert ['{"event": "too_late", "acs_id": "8:acs:1"}'] == result["printed"]
        assert not any("too_late" in line for line in result["taken"] + result["dropped"])


class TestBroker:
    """This repository's function_app.py."""

    def test_loads_and_answers(self) -> None:
        """The app is indexed without settings, and answers requests that need no other service."""
        result = run(REPOSITORY, [http("health"), http("openapi"), http("token")])
        functions, [healthy, contract, refused] = result["functions"], result["answers"]

        assert {
            "token",
            "user",
            "health",
            "health_ready",
            "openapi",
            "prune_mappings",
            "back_up_mappings",
        } <= functions.keys()
        assert 200 == healthy["status"]
        assert "3.1.0" == json.loads(contract["body"])["openapi"]
        assert 401 == refused["status"]
        assert "application/problem+json" == refused["headers"]["content-type"]
