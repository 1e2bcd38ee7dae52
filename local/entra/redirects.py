"""Where the local Entra sends a browser back to, and how."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit

from aiohttp import web

from local.entra.directory import is_loopback
from local.entra.errors import EntraError, required
from local.entra.pages import form_post_page

if TYPE_CHECKING:
    from collections.abc import Mapping

    from local.entra.objects import App


def redirect_uri_of(params: Mapping[str, str], client: App, *, signs_in: bool = True) -> str:
    """Return a request's redirect URI.

    Raises:
        EntraError: it is missing, or not one of the client's.
    """
    redirect_uri = required(params, "redirect_uri")
    listed = client.redirect_uris
    if listed is None and (client.platform or not signs_in) and is_loopback(redirect_uri):
        return redirect_uri
    # Entra ignores the port of an address on this computer.
    if _without_port(redirect_uri) in map(_without_port, listed or ()):
        return redirect_uri
    message = (
        f"The redirect URI '{redirect_uri}' specified in the request does not match the redirect "
        f"URIs configured for the application '{client.client_id}'."
    )
    raise EntraError("invalid_request", 50011, message)


def _without_port(uri: str) -> str:
    if not is_loopback(uri):
        return uri
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.hostname}{parts.path.rstrip('/')}?{parts.query}"


def go_back(
    redirect_uri: str, params: Mapping[str, str], answer: Mapping[str, str]
) -> web.Response:
    """Send the browser back to the app with an answer, in the mode that the app asked for."""
    answer = {**answer, "state": params["state"]} if "state" in params else answer
    mode = params.get("response_mode", "query")
    if mode == "form_post":
        return form_post_page(redirect_uri, answer)
    mark = "#" if mode == "fragment" else "&" if "?" in redirect_uri else "?"
    location = f"{redirect_uri}{mark}{urlencode(answer)}"
    headers = {"Location": location, "Cache-Control": "no-store"}
    return web.Response(status=HTTPStatus.FOUND, headers=headers)


async def form_of(request: web.Request) -> dict[str, str]:
    """Return the fields of a form."""
    form = await request.post()
    return {name: value for name, value in form.items() if isinstance(value, str)}
