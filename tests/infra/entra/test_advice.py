"""What is said about a refusal."""

from __future__ import annotations

import pytest

from infra.entra.advice import what_to_do
from infra.entra.rest import Call, RefusedError

UPSERT = "/v1.0/applications(uniqueName='acs-token-broker')"


@pytest.mark.parametrize(
    ("method", "path", "status", "message", "advice"),
    [
        pytest.param("PATCH", UPSERT, 429, "", "in a few minutes", id="busy"),
        pytest.param("PATCH", UPSERT, 503, "", "in a few minutes", id="down"),
        pytest.param("PATCH", UPSERT, 400, "displayName is empty", "Correct that", id="wrong"),
        pytest.param("PATCH", UPSERT, 400, "uniqueName already exists", "30 days", id="deleted"),
        pytest.param("PATCH", UPSERT, 403, "", "Application Developer", id="may not change"),
        pytest.param("GET", UPSERT, 403, "", "Directory Readers", id="may not read"),
        pytest.param("GET", "/access/entra/assignments", 404, "", "preview", id="preview"),
        pytest.param("GET", "/access/entra/assignments", 403, "", "Service Owner", id="ACS"),
    ],
)
def test_advice(method: str, path: str, status: int, message: str, advice: str) -> None:
    """The advice is about this refusal, and not about another one at the same place."""
    refused = RefusedError(Call("it", method, path), status, "Code", message)
    assert advice in what_to_do(refused)
