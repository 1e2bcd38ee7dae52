"""A stand-in for `gh`, with as much of GitHub as the scripts of infra/ use.

Its state is in $FAKES/github.json, and it appends each call to $FAKES/calls.jsonl.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

FOLDER = Path(os.environ["FAKES"])
STATE: dict[str, Any] = json.loads((FOLDER / "github.json").read_text())


def refuse(said: str) -> NoReturn:
    sys.stderr.write(f"gh: {said}\n")
    sys.exit(1)


def show(value: object) -> None:
    sys.stdout.write(f"{value if isinstance(value, str) else json.dumps(value)}\n")


def environment(name: str) -> dict[str, Any]:
    for each in STATE["environments"]:
        if each["name"] == name:
            found: dict[str, Any] = each
            return found
    refuse("Not Found (HTTP 404)")


def as_shown(given: dict[str, Any]) -> dict[str, Any]:
    """Return an environment as GitHub shows it, given the settings that were written."""
    rules: list[dict[str, Any]] = []
    if given.get("reviewers"):
        reviewers = [{"type": r["type"], "reviewer": {"id": r["id"]}} for r in given["reviewers"]]
        not_self = given.get("prevent_self_review", False)
        rules.append(
            {
                "type": "required_reviewers",
                "reviewers": reviewers,
                "prevent_self_review": not_self,
            }
        )
    if given.get("wait_timer"):
        rules.append({"type": "wait_timer", "wait_timer": given["wait_timer"]})
    return {
        "protection_rules": rules,
        "deployment_branch_policy": given["deployment_branch_policy"],
    }


def api(method: str, path: str, rest: list[str]) -> None:
    """Answer one call of GitHub's REST API."""
    repository = f"repos/{STATE['repository']}"
    policies = re.fullmatch(rf"{repository}/environments/([\w-]+)/deployment-branch-policies", path)
    if path == f"{repository}/actions/oidc/customization/sub":
        show(STATE["claim"])
    elif path == f"{repository}/environments?per_page=100":
        show({"environments": STATE["environments"]})
    elif policies and method == "GET":
        show("\n".join(environment(policies[1])["branches"]))
    elif policies:
        environment(policies[1])["branches"].append(
            rest[rest.index("--raw-field") + 1].removeprefix("name=")
        )
    elif method == "PUT":
        name = path.removeprefix(f"{repository}/environments/")
        old = [each for each in STATE["environments"] if each["name"] == name]
        branches = old[0]["branches"] if old else []
        others = [each for each in STATE["environments"] if each["name"] != name]
        put = {"name": name, "branches": branches, **as_shown(json.load(sys.stdin))}
        STATE["environments"] = [*others, put]
    elif path in STATE["ids"]:
        show(STATE["ids"][path])
    else:
        refuse("Not Found (HTTP 404)")


def main(arguments: list[str]) -> None:
    """Answer one call, and change the state."""
    if STATE.get("refuses") in arguments:
        refuse("Validation Failed (HTTP 422)")
    where = arguments[arguments.index("--env") + 1] if "--env" in arguments else ""
    match arguments:
        case ["auth", "status"]:
            if not STATE["signed_in"]:
                refuse("You are not logged into any GitHub hosts.")
        case ["repo", "view", *_]:
            show(STATE["repository"])
        case ["api", "--method", method, path, *rest]:
            api(method, path, rest)
        case ["api", path, *rest]:
            api("GET", path, rest)
        case ["variable", "list", *_]:
            found = STATE["variables"].get(where, {})
            show([{"name": name, "value": value} for name, value in found.items()])
        case ["variable", "set", name, *rest]:
            if where:
                environment(where)
            value = rest[rest.index("--body") + 1]
            STATE["variables"].setdefault(where, {})[name] = value
        case _:
            refuse(f"unknown command {arguments}")


with (FOLDER / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps(["gh", *sys.argv[1:]]) + "\n")
main(sys.argv[1:])
(FOLDER / "github.json").write_text(json.dumps(STATE))
