"""A stand-in for `az`, with as much of Azure, Entra and Graph as the scripts of infra/ use.

Its state is in $FAKES/azure.json, and it appends each call to $FAKES/calls.jsonl. Its answers are
what `--output` and `--query` of the scripts would give, but it evaluates no query.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

FOLDER = Path(os.environ["FAKES"])
STATE: dict[str, Any] = json.loads((FOLDER / "azure.json").read_text())


def refuse(said: str) -> NoReturn:
    sys.stderr.write(f"ERROR: {said}\n")
    sys.exit(1)


def options(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """Return the command's words, and the values of its options."""
    command: list[str] = []
    values: dict[str, list[str]] = {}
    name = ""
    for argument in arguments:
        if argument.startswith("--"):
            name = argument[2:]
            values[name] = []
        elif name:
            values[name].append(argument)
        else:
            command.append(argument)
    return " ".join(command), {
        key: found[0] if len(found) == 1 else found for key, found in values.items()
    }


def guid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012}"


def new_id() -> str:
    STATE["last_id"] = STATE.get("last_id", 0) + 1
    return guid(STATE["last_id"])


def registered(client_id: str) -> dict[str, Any]:
    for app in STATE["apps"]:
        if client_id in {app["appId"], app["id"]}:
            found: dict[str, Any] = app
            return found
    refuse(f"Resource '{client_id}' does not exist")


def filtered(text: str) -> tuple[str, str]:
    found = re.fullmatch(r"(\w+) eq '(.*)'", text)
    if not found:
        refuse(f"Invalid filter {text}")
    return found[1], found[2]


def shown(given: Any) -> None:
    """Print a line for each value, as `--output tsv` does."""
    if isinstance(given, str):
        given = [given]
    for row in given:
        fields = row if isinstance(row, list) else [row]
        sys.stdout.write("\t".join("None" if f is None else f for f in fields) + "\n")


def main(command: str, given: dict[str, Any]) -> None:  # noqa: C901, PLR0912, PLR0915 - a table
    """Answer one call, and change the state."""
    if not STATE["signed_in"]:
        refuse("Please run 'az login' to setup account.")
    match command:
        case "account show":
            whole = {
                "id": STATE["subscription"],
                "[name, id] | join(' ', @)": f"Test {STATE['subscription']}",
                "[id, tenantId] | join(' ', @)": f"{STATE['subscription']} {STATE['tenant']}",
            }
            shown(whole[given["query"]])
        case "group exists":
            shown(str(given["name"] in STATE["groups"]).lower())
        case "group list":
            shown(name for name in STATE["groups"] if name.startswith("rg-acs-token-broker-"))
        case "group show":
            shown(STATE["groups"][given["name"]]["tag"])
        case "group delete":
            if STATE["groups"][given["name"]]["locks"] or STATE.pop("locks_linger", False):
                (FOLDER / "azure.json").write_text(json.dumps(STATE))
                refuse("ScopeLocked")
            if STATE["groups"][given["name"]].get("policies"):
                refuse("AccountProtectedFromDeletion")
            del STATE["groups"][given["name"]]
        case "resource list":
            group = STATE["groups"][given["resource-group"]]
            shown(group["workspaces"] if "resource-type" in given else group["resources"])
        case "lock list":
            shown(STATE["groups"][given["resource-group"]]["locks"])
        case "lock delete":
            for each in STATE["groups"].values():
                each["locks"] = [lock for lock in each["locks"] if lock != given["ids"]]
        case "monitor diagnostic-settings list":
            shown([s for s in STATE["settings"].get(given["resource"], []) if s in given["query"]])
        case "monitor diagnostic-settings delete":
            STATE["settings"][given["resource"]].remove(given["name"])
        case "monitor log-analytics workspace delete":
            STATE["groups"][given["resource-group"]]["workspaces"].remove(given["workspace-name"])
        case "deployment sub list":
            if given["output"] == "json":
                keys = ("name", "tags", "state", "time")
                sys.stdout.write(
                    json.dumps([{k: d[k] for k in keys} for d in STATE["deployments"]])
                )
            else:
                wanted = re.findall(r"=='([^']*)'", given["query"])
                tags = {"azd-env-name": wanted[1], "azd-project-name": wanted[2]}
                shown(
                    d["name"]
                    for d in STATE["deployments"]
                    if d["name"] == wanted[0] or tags.items() <= (d["tags"] or {}).items()
                )
        case "deployment sub show":
            (found,) = (d for d in STATE["deployments"] if d["name"] == given["name"])
            sys.stdout.write(json.dumps(found["outputs"]))
        case "deployment sub delete":
            STATE["deployments"] = [d for d in STATE["deployments"] if d["name"] != given["name"]]
        case "role assignment list":
            if "role" in given and given["role"] not in STATE["definitions"]:
                refuse(f"Role '{given['role']}' doesn't exist.")
            found = [
                assignment
                for assignment in STATE["assignments"]
                if assignment["principal"] == given["assignee-object-id"]
                and given.get("scope") in {None, assignment["scope"]}
                and given.get("role") in {None, assignment["role"]}
            ]
            shown([[a["id"], a["condition"]] if "role" in given else a["id"] for a in found])
        case "role assignment create":
            if given["role"] not in STATE["definitions"]:
                refuse(f"Role '{given['role']}' doesn't exist.")
            STATE["assignments"].append(
                {
                    "id": f"assignment-{new_id()}",
                    "scope": given["scope"],
                    "principal": given["assignee-object-id"],
                    "role": given["role"],
                    "condition": given.get("condition"),
                }
            )
        case "role assignment delete":
            STATE["assignments"] = [a for a in STATE["assignments"] if a["id"] != given["ids"]]
        case "role definition list":
            shown(STATE["definitions"].get(given["name"], []))
        case "role definition create" | "role definition update":
            definition = json.loads(given["role-definition"])
            STATE["definitions"][definition["Name"]] = definition["Actions"]
        case "ad app list":
            key, value = filtered(given["filter"])
            wanted_key = given["query"].removeprefix("[].")
            shown([app[wanted_key] for app in STATE["apps"] if app[key] == value])
        case "ad app show":
            app = registered(given["id"])
            shown([app["displayName"]] if given["query"] == "displayName" else app["secrets"])
        case "ad app update":
            registered(given["id"])["displayName"] = given["display-name"]
        case "ad app delete":
            app = registered(given["id"])
            STATE["apps"].remove(app)
            STATE["deleted"].append({"id": app["id"], "appId": app["appId"]})
            STATE["principals"].pop(app["appId"], None)
        case "ad sp list":
            _, value = filtered(given["filter"])
            shown([STATE["principals"][value]] if value in STATE["principals"] else [])
        case "ad sp create":
            principal = STATE["principals"][registered(given["id"])["appId"]] = new_id()
            shown(principal)
        case "ad app federated-credential list":
            credentials = registered(given["id"])["credentials"]
            if given["query"] == "[].[issuer, subject]":
                shown([[each["issuer"], each["subject"]] for each in credentials.values()])
            else:
                (name,) = re.findall(r"name!='([^']*)'", given["query"])
                shown([each for each in credentials if each != name])
        case "ad app federated-credential create" | "ad app federated-credential update":
            credential = json.loads(given["parameters"])
            registered(given["id"])["credentials"][credential["name"]] = credential
        case "rest" if given["method"] == "POST":
            name = json.loads(given["body"])["displayName"]
            app = {"id": new_id(), "appId": new_id(), "displayName": name}
            STATE["apps"].append({**app, "credentials": {}, "secrets": []})
            shown(app["appId"])
        case "rest":
            path = given["url"].removeprefix(
                "https://graph.microsoft.com/v1.0/directory/deletedItems/"
            )
            if given["method"] == "GET":
                shown([d["id"] for d in STATE["deleted"] if d["appId"] in given["query"]])
            elif all(each["id"] != path for each in STATE["deleted"]):
                refuse("Resource does not exist")
            else:
                STATE["deleted"] = [d for d in STATE["deleted"] if d["id"] != path]
        case "storage account list":
            shown(STATE["groups"][given["resource-group"]].get("policies", {}))
        case "storage container immutability-policy show":
            policies = STATE["groups"][given["resource-group"]].get("policies", {})
            if given["account-name"] not in policies:
                refuse("ResourceNotFound")
            shown(f'{policies[given["account-name"]]} "0x8D"')
        case "storage container immutability-policy delete":
            if given["if-match"] != '"0x8D"' or STATE["groups"][given["resource-group"]]["locks"]:
                refuse("PreconditionFailed")
            STATE["groups"][given["resource-group"]]["policies"] = {}
        case _:
            refuse(f"'{command}' is not a command that the scripts are known to use")


with (FOLDER / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps(["az", *sys.argv[1:]]) + "\n")
main(*options(sys.argv[1:]))
(FOLDER / "azure.json").write_text(json.dumps(STATE))
