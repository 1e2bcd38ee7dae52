"""The function app: its HTTP routes and its timers."""

from __future__ import annotations

import functools
import gc
import logging
import os
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

import azure.functions as func

from shared.broker import user_json
from shared.http import REVOKED_WITHIN, answers_problems, done, json_document, json_response
from shared.requests import (
    TokenRequest,
    UsersQuery,
    adopted_identity,
    bearer_token,
    held_token,
    person_of,
    refuse_input,
)
from shared.services import build_services

if TYPE_CHECKING:
    from shared.services import Services

# The SDKs log at least one line for each request that they make, and MSAL whom a token is for.
logging.getLogger("azure").setLevel(logging.WARNING)
logging.getLogger("msal").setLevel(logging.WARNING)
logger = logging.getLogger("broker")
SWEEP_SCHEDULE = "0 */5 * * * *"  # Every five minutes.

app = func.FunctionApp(http_auth_level=func.AuthLevel.ANONYMOUS)


@app.route(route="token")
@answers_problems("GET", "POST", event="token_issued")
async def token(req: func.HttpRequest) -> func.HttpResponse:
    """Exchange the caller's Entra access token for an ACS access token."""
    access_token = bearer_token(req.headers)
    caller = await services().broker.authenticate(access_token)
    issued = await services().broker.issue(caller, TokenRequest.parse(req))
    return json_response(issued.as_json())


@app.route(route="token/entra")
@answers_problems("GET", "POST", event="token_exchanged")
async def token_entra(req: func.HttpRequest) -> func.HttpResponse:
    """Exchange the caller's Entra access token for an ACS access token of an Entra ID user."""
    access_token = bearer_token(req.headers)
    caller = await services().broker.authenticate(access_token)
    held = held_token(req)
    exchanged = await services().exchange.for_entra_user(caller, access_token, held)
    return json_response(exchanged.as_json())


@app.route(route="token/teams")
@answers_problems("GET", "POST", event="token_exchanged")
async def token_teams(req: func.HttpRequest) -> func.HttpResponse:
    """Exchange the caller's Entra access token for an ACS access token of a Teams user."""
    access_token = bearer_token(req.headers)
    caller = await services().broker.authenticate(access_token)
    held = held_token(req)
    exchanged = await services().exchange.for_teams_user(caller, access_token, held)
    return json_response(exchanged.as_json())


@app.route(route="token/revoke")
@answers_problems("POST", event="tokens_revoked")
async def token_revoke(req: func.HttpRequest) -> func.HttpResponse:
    """Sign the caller out everywhere: revoke all of the caller's ACS access tokens."""
    access_token = bearer_token(req.headers)
    caller = await services().broker.authenticate(access_token)
    refuse_input(req)
    return done(await services().broker.revoke(caller), REVOKED_WITHIN)


@app.route(route="user")
@answers_problems(
    *("GET", "POST", "DELETE"),
    event={"GET": "user_read", "POST": "user_read", "DELETE": "user_erased"},
)
async def user(req: func.HttpRequest) -> func.HttpResponse:
    """Read the caller's ACS identity, create it or erase it."""
    access_token = bearer_token(req.headers)
    caller = await services().broker.authenticate(access_token)
    refuse_input(req)
    if req.method == "DELETE":
        return done(await services().broker.erase(caller))
    if req.method == "POST":
        acs_id = await services().broker.create_user(caller)
    else:
        acs_id = await services().broker.find_user(caller)
    return json_response({"user": user_json(acs_id)})


@app.route(route="users")
@answers_problems("GET", event="users_listed")
async def users(req: func.HttpRequest) -> func.HttpResponse:
    """List a tenant's people, or find the one who has an ACS identity."""
    access_token = bearer_token(req.headers)
    administrator = await services().broker.authenticate_administrator(access_token)
    listing = await services().directory.find(administrator, UsersQuery.parse(req))
    body: dict[str, object] = {"users": listing.users}
    if listing.following is not None:
        body["continuationToken"] = str(listing.following)
    return json_response(body)


@app.route(route="users/{tenantId}/{objectId}")
@answers_problems(
    *("GET", "PUT", "DELETE"),
    event={"GET": "user_looked_up", "PUT": "user_adopted", "DELETE": "user_erased"},
)
async def users_one(req: func.HttpRequest) -> func.HttpResponse:
    """Show a person's mapping, bring an existing identity along, or erase the person."""
    access_token = bearer_token(req.headers)
    administrator = await services().broker.authenticate_administrator(access_token)
    person = person_of(req)
    directory = services().directory
    if req.method == "PUT":
        created = await directory.adopt(administrator, person, adopted_identity(req))
        status = HTTPStatus.CREATED if created else HTTPStatus.OK
        return json_response(await directory.read(administrator, person), status)
    refuse_input(req)
    if req.method == "DELETE":
        return done(await directory.erase(administrator, person))
    return json_response(await directory.read(administrator, person))


@app.route(route="users/{tenantId}/{objectId}/revoke")
@answers_problems("POST", event="tokens_revoked")
async def users_one_revoke(req: func.HttpRequest) -> func.HttpResponse:
    """Sign a person out everywhere."""
    access_token = bearer_token(req.headers)
    administrator = await services().broker.authenticate_administrator(access_token)
    refuse_input(req)
    return done(await services().directory.revoke(administrator, person_of(req)), REVOKED_WITHIN)


@app.route(route="users/{tenantId}/{objectId}/renew")
@answers_problems("POST", event="identity_renewed")
async def users_one_renew(req: func.HttpRequest) -> func.HttpResponse:
    """Give a person a new identity in place of one that ACS no longer knows."""
    access_token = bearer_token(req.headers)
    administrator = await services().broker.authenticate_administrator(access_token)
    refuse_input(req)
    return json_response(await services().directory.renew(administrator, person_of(req)))


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


@app.timer_trigger(arg_name="timer", schedule=SWEEP_SCHEDULE, run_on_startup=False)
async def sweep_ledger(timer: func.TimerRequest) -> None:  # noqa: ARG001 - the host passes it
    """Finish erasures and revocations, and delete the identities in the ledger."""
    await services().sweeper.run()


@app.timer_trigger(arg_name="timer", schedule="%BACKUP_SCHEDULE%", run_on_startup=False)
async def back_up_mappings(timer: func.TimerRequest) -> None:
    """Write all mappings and the ledger to another storage account."""
    if timer.past_due:
        logger.warning("backup_past_due")
    await services().back_up()


@functools.cache
def services() -> Services:
    """Return the services, built on first use: importing this module only lists the functions."""
    built = build_services(os.environ)
    # Everything that was imported and built stays until the process ends. Without this, a flood of
    # refusals makes Python look through all of it every few seconds, while all requests wait.
    gc.freeze()
    return built


@functools.cache
def _contract() -> str:
    return Path(__file__).with_name("shared").joinpath("openapi.json").read_text("utf-8")
