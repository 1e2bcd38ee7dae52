"""What a person does in the browser: choose who signs in, and go back to the app.

`python sign_in.py ACCOUNT URL` is a browser for Python's `webbrowser`.
"""

from __future__ import annotations

import re
import sys
from html import unescape

import requests

APP = re.compile(r'<form method="post" action="([^"]*)"')
FIELD = re.compile(r'<input type="hidden" name="([^"]*)" value="([^"]*)"')


def choose(session: requests.Session, account: str, url: str) -> tuple[str, dict[str, str]]:
    """Sign in at Entra, and return the app's address and the answer that is posted there."""
    page = session.post(url, {"account": account}, timeout=10)
    page.raise_for_status()
    [app] = APP.findall(page.text)
    fields = {name: unescape(value) for name, value in FIELD.findall(page.text)}
    return unescape(app), fields


def sign_in(account: str, url: str) -> None:
    """Sign in, and deliver the answer to the app, which waits for it on loopback."""
    with requests.Session() as session:
        app, fields = choose(session, account, url)
        session.post(app, fields, timeout=10).raise_for_status()


if __name__ == "__main__":
    sign_in(*sys.argv[1:])
