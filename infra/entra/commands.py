"""What the commands do that change or show something."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from infra.entra import assignments
from infra.entra.assignments import Assignment
from infra.entra.command_line import command_line
from infra.entra.consent import consent_urls
from infra.entra.directory import ACS_CLIENTS_APP, ACS_TEAMS_APP, NAMES
from infra.entra.intended import exchanges_of, wanted_of
from infra.entra.printable import printable
from infra.entra.registration import CONSENT_PAGE
from infra.entra.session import NotDoneError, say, show
from infra.entra.setup import Preview, bring_about, next_steps, settings
from infra.entra.unexpected import report, unexpected

if TYPE_CHECKING:
    from argparse import Namespace

    from infra.entra.directory import Directory, Graph
    from infra.entra.registration import Wanted
    from infra.entra.rest import Call, Service
    from infra.entra.session import Session

DONE = 0
ACS_APPS = frozenset({ACS_CLIENTS_APP, ACS_TEAMS_APP})


def setup(arguments: Namespace, session: Session) -> int:
    """Bring about what is wanted in the home tenant, and print the settings."""
    directory, graph = _home(arguments, session, tuple(arguments.client_id))
    if arguments.broker and directory.application is None:
        raise NotDoneError(f"{arguments.broker} is not registered in {directory.tenant_id}")
    wanted, exchanges = wanted_of(arguments, directory), exchanges_of(arguments, directory)
    _look_at(directory, wanted, graph)
    if arguments.dry_run:
        count = bring_about(directory, wanted, Preview(wanted, show), say=lambda _: None)
        show("# None of these calls was sent." if count else "# Nothing to change.")
        return DONE
    count = bring_about(directory, wanted, graph.service, say=say)
    show(f"Changes in tenant {directory.tenant_id}: {count or 'none'}.")
    show(f"\nSettings:\n\n{settings(directory, wanted, exchanges)}")
    steps = next_steps(directory, wanted, exchanges, arguments)
    show("\nNext:\n" + "".join(f"\n  {number}. {text}" for number, text in enumerate(steps, 1)))
    return DONE


def _look_at(directory: Directory, wanted: Wanted, graph: Graph) -> None:
    """Show what is not expected in a registration that was found by its name.

    Raises:
        NotDoneError: it would be given consent, or let other tenants' users in.
    """
    application = directory.application
    items = unexpected(directory, wanted)
    if wanted.broker_id or application is None or not items:
        return
    spreads = wanted.consent or wanted.multitenant
    if not spreads and not any(each.is_grave for each in items):
        return
    for line in report(application, items, graph.owners(application)):
        say(line)
    if spreads and any(each.is_grave for each in items):
        raise NotDoneError(
            "somebody else may have made this registration, so it gets neither consent nor other"
            " tenants' users. Look at it; name the managed identities that are yours with"
            " --identity, or say that all of it is yours with"
            f" --broker {application['appId']}"
        )


def _home(
    arguments: Namespace, session: Session, others: tuple[str, ...]
) -> tuple[Directory, Graph]:
    """Return what the tenant holds that is signed in to, and Graph."""
    graph = session.graph()
    tenant_id = graph.tenant_id()
    say(f"Reading the directory of tenant {tenant_id} ...")
    directory = graph.read(
        tenant_id,
        unique_name=arguments.unique_name,
        client_id=arguments.broker,
        others=(*NAMES, *others),
    )
    return directory, graph


def consent_url(arguments: Namespace, session: Session) -> int:
    """Print the links for an administrator of another tenant."""
    directory, graph = _home(arguments, session, tuple(arguments.client_id))
    application = directory.application
    if application is None:
        line = command_line(arguments, "setup")
        raise NotDoneError(f"the broker is not registered here; run: {line}")
    if application.get("signInAudience") == "AzureADMyOrg":
        line = command_line(arguments, "setup", "--multitenant")
        raise NotDoneError(f"the broker serves its own tenant only; run: {line}")
    if CONSENT_PAGE not in ((application.get("web") or {}).get("redirectUris") or []):
        line = command_line(arguments, "setup")
        raise NotDoneError(f"the broker has no redirect URI {CONSENT_PAGE}; run: {line}")
    known = (application.get("api") or {}).get("knownClientApplications") or []
    for client_id in known:
        if client_id not in directory.clients and (client := graph.registration(client_id)):
            directory.clients[client_id] = client
    for client_id in set(arguments.client_id) - directory.clients.keys():
        say(f"{client_id} is not registered here: its owner has its link.")
    links = consent_urls(directory, authority=arguments.authority_host, tenant=arguments.tenant)
    show(
        f"An administrator of {arguments.tenant} opens each of these pages, in this order, and"
        " accepts. It has worked if the address\nthat the browser then shows has"
        " admin_consent=True; otherwise it has an error.\n"
    )
    show("\n\n".join(f"{printable(name)}\n{link}" for name, link in links))
    requested = [each["resourceAppId"] for each in application.get("requiredResourceAccess") or []]
    show(
        "\nIf Entra answers AADSTS650052 (no service principal), the administrator first runs this"
        " in that tenant:\n"
    )
    show("\n".join(f"az ad sp create --id {each}" for each in requested if each in ACS_APPS))
    return DONE


def assign(arguments: Namespace, session: Session) -> int:
    """Give a user, a group or a tenant access."""
    whole = arguments.kind == "tenant"
    if whole == bool(arguments.object_id):
        raise NotDoneError("a user or a group needs an object id, a whole tenant only --tenant")
    acs = session.acs_resource()
    client_ids = frozenset(arguments.client_id or [_broker_id(arguments, session)])
    object_id = arguments.tenant if whole else arguments.object_id
    wanted = Assignment(arguments.kind, object_id, arguments.tenant, client_ids)
    call = assignments.to_assign(assignments.listed(acs), wanted)
    return _change(acs, call, "Nothing to change: it has this access.", arguments)


def _broker_id(arguments: Namespace, session: Session) -> str:
    """Return the broker's client id, which is looked up unless it is given."""
    if arguments.broker:
        return str(arguments.broker)
    directory, _ = _home(arguments, session, ())
    if directory.broker_id is None:
        raise NotDoneError("the broker is not registered here: name the app with --client-id")
    return directory.broker_id


def unassign(arguments: Namespace, session: Session) -> int:
    """Take access away."""
    acs = session.acs_resource()
    client_ids = frozenset(arguments.client_id)
    call = assignments.to_unassign(assignments.listed(acs), arguments.object_id, client_ids)
    unchanged = f"{arguments.object_id} has no such access: there is nothing to take away."
    return _change(acs, call, unchanged, arguments)


def _change(acs: Service, call: Call | None, unchanged: str, arguments: Namespace) -> int:
    if call is None:
        show(f"{unchanged} ({acs.url})")
    elif arguments.dry_run:
        body = "" if call.body is None else f"\n{json.dumps(call.body, indent=2)}"
        target = f"{acs.url}{call.path}?{assignments.API_VERSION}"
        show(f"# {call.does}\n{call.method} {target}{body}")
    else:
        acs.send(call)
        show(f"Done at {acs.url}: {call.does}")
    return DONE


def list_assignments(arguments: Namespace, session: Session) -> int:
    """List who has access."""
    acs = session.acs_resource()
    found = assignments.listed(acs)
    if arguments.json:
        show(json.dumps([each.shown() for each in found], indent=2))
    else:
        lines = "\n".join(str(each) for each in found) or "Nobody has access."
        show(f"Access to {acs.url}:\n\n{lines}")
    return DONE
