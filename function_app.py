"""The function app: its HTTP routes and its timer."""

from __future__ import annotations

import functools
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import azure.functions as func

from shared.broker import user_json
from shared.http import (
    TokenRequest,
    answers_problems,
    bearer_token,
    json_document,
    json_response,
    refuse_input,
)
from shared.services import build_services

if TYPE_CHECKING:
    from shared.services import Services

# The SDKs log at least one line for each request that they make.
logging.getLogger("azure").setLevel(logging.WARNING)
logger = logging.getLogger("broker")

app = func.FunctionApp(http_auth_level=func.AuthLevel.ANONYMOUS)


@app.route(route="token")
@answers_problems("GET", "POST", event="token_issued")
async def token(req: func.HttpRequest) -> func.HttpResponse:
    """Exchange the caller's Entra access token for an ACS access token."""
    access_token = bearer_token(req.headers)
    caller = await services().broker.authenticate(access_token)
    issued = await services().broker.issue(caller, TokenRequest.parse(req))
    return json_response(issued.as_json())


@app.route(route="user")
@answers_problems("GET", "POST", event="user_read")
async def user(req: func.HttpRequest) -> func.HttpResponse:
    """Read the caller's ACS identity, or create it."""
    access_token = bearer_token(req.headers)
    caller = await services().broker.authenticate(access_token)
    refuse_input(req)
    if req.method == "POST":
        acs_id = await services().broker.create_user(caller)
    else:
        acs_id = await services().broker.find_user(caller)
    return json_response({"user": user_json(acs_id)})


@app.route(route="health")
@answers_problems("GET")
async def health(_req: func.HttpRequest) -> func.HttpResponse:
    """Answer 200 while the process runs; no other service is called."""
    return json_response({"status": "healthy"})


@app.route(route="health/ready")
@answers_problems("GET")
async def health_ready(_req: func.HttpRequest) -> func.HttpResponse:
    """Answer 200 if tokens can be issued: the settings, signing keys and table are checked."""
    await services().broker.check_ready()
    return json_response({"status": "ready"})


@app.route(route="openapi.json")
@answers_problems("GET")
async def openapi(_req: func.HttpRequest) -> func.HttpResponse:
    """Serve the OpenAPI contract."""
    return json_document(_contract())


@app.timer_trigger(arg_name="timer", schedule="%PRUNE_SCHEDULE%", run_on_startup=False)
async def prune_mappings(timer: func.TimerRequest) -> None:
    """Finish what was interrupted and remove identities that nobody uses."""
    if timer.past_due:
        logger.warning("prune_past_due")
    await services().pruner.run()


@functools.cache
def services() -> Services:
    """Return the services, built on first use: importing this module only lists the functions."""
    return build_services(os.environ)


@functools.cache
def _contract() -> str:
    return Path(__file__).with_name("shared").joinpath("openapi.json").read_text("utf-8")
