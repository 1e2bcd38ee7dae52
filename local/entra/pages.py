"""The pages of the local Entra: sign-in, the form that returns a code, and messages."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from local.entra.objects import User

_STYLE = """
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 26rem; margin: 3rem auto; padding: 0 1rem }
button { font: inherit; display: block; width: 100%; margin: .5rem 0; padding: .75rem;
  text-align: left; color: inherit; background: none; border: 1px solid; border-radius: 4px }
button:hover, button:focus-visible { outline: 3px solid #2563eb }
small { display: block }
"""
_SUBMIT = "document.forms[0].submit()"


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


# No form-action: browsers would apply it to the redirect that follows, too.
_POLICY = "; ".join(
    [
        "default-src 'none'",
        "base-uri 'none'",
        f"style-src {_source(_STYLE)}",
        f"script-src {_source(_SUBMIT)}",
    ]
)


def sign_in_page(users: Iterable[User], params: Mapping[str, str], *, app: str) -> web.Response:
    """Return the page that asks who signs in; `params` are sent back with the answer."""
    hint = params.get("login_hint", "").lower()
    buttons = "".join(
        f'<button name="account" value="{escape(user.object_id)}"'
        f"{' autofocus' if hint == user.account.user_name else ''}>"
        f"{escape(user.name)}{' (guest)' if user.guest_of else ''}"
        f"<small>{escape(user.account.user_name)}</small></button>"
        for user in users
    )
    body = (
        f"<h1>Sign in to {escape(app)}</h1>"
        '<form method="post">'
        f"{_hidden(params)}{buttons}</form>"
        "<p>This stands in for Microsoft Entra on this computer. Nobody has a password here, and "
        "its keys are worthless.</p>"
    )
    return _page("Sign in", body)


def consent_page(
    permissions: Iterable[str],
    params: Mapping[str, str],
    *,
    app: str,
    user: User,
    may_accept: bool,
) -> web.Response:
    """Return the page that asks a user to consent, or says that an administrator has to."""
    items = "".join(f"<li>{escape(permission)}</li>" for permission in permissions)
    title = "Permissions requested" if may_accept else "Need admin approval"
    text = "The app would like to:" if may_accept else "Only an administrator can grant this:"
    accept = '<button name="consent" value="accept" autofocus>Accept</button>' if may_accept else ""
    account = f'<input type="hidden" name="account" value="{escape(params["account"])}">'
    body = (
        f"<h1>{title}</h1><p>{escape(app)}, for {escape(user.account.user_name)}</p>"
        f"<p>{text}</p><ul>{items}</ul>"
        f'<form method="post">{_hidden(params)}{account}{accept}'
        '<button name="consent" value="decline">Cancel</button></form>'
    )
    return _page(title, body)


def code_page(*, wrong: bool) -> web.Response:
    """Return the page that asks for the code that a device shows."""
    complaint = "<p role=alert>That code does not work. Check it, or get a new one.</p>"
    body = (
        f"<h1>Enter code</h1>{complaint if wrong else ''}"
        '<form method="post"><label>The code on your app or device '
        '<input name="user_code" autocomplete="off" autofocus required></label>'
        "<button>Next</button></form>"
    )
    return _page("Enter code", body, status=400 if wrong else 200)


def form_post_page(url: str, params: Mapping[str, str]) -> web.Response:
    """Return the page that sends the browser back to an app with a POST."""
    body = (
        f'<form method="post" action="{escape(url)}">{_hidden(params)}'
        "<noscript><button>Continue</button></noscript></form>"
        f"<script>{_SUBMIT}</script>"
    )
    return _page("Signing in", body)


def message_page(title: str, message: str, *, status: int = 200) -> web.Response:
    """Return a page with a message to the user."""
    return _page(title, f"<h1>{escape(title)}</h1><p>{escape(message)}</p>", status=status)


def _hidden(params: Mapping[str, str]) -> str:
    return "".join(
        f'<input type="hidden" name="{escape(name)}" value="{escape(value)}">'
        for name, value in params.items()
        if name not in {"account", "consent"}
    )


def _page(title: str, body: str, *, status: int = 200) -> web.Response:
    html = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style><main>{body}</main></html>"
    )
    headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-store"}
    return web.Response(status=status, text=html, content_type="text/html", headers=headers)
