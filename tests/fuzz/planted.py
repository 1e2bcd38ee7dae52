"""Defects planted into the service's own code: the fuzzer has to find every one of them.

Each replaces one piece of a function's source, as a careless edit would.
"""

from __future__ import annotations

import inspect
import textwrap
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shared import endpoints, policy, requests, strict_json
from shared.acs import tokens
from shared.entra import access_tokens, compact_form, graph, key_sets, refusals, unverified

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Defect:
    """A careless edit of one function, and the target that has to bring it out."""

    target: str
    function: Any  # A function or method; the types of its arguments do not matter here.
    right: str
    wrong: str

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Run the function with the edit while the context lasts.

        Raises:
            LookupError: the source no longer has what the edit replaces.
        """
        source = textwrap.dedent(inspect.getsource(self.function))
        if source.count(self.right) != 1:
            raise LookupError(f"{self.function.__qualname__} does not have {self.right!r} once")
        source = source.replace(self.right, self.wrong)
        made: dict[str, Any] = {}
        exec(  # noqa: S102 - the service's own source, edited above
            f"from __future__ import annotations\n{source}", self.function.__globals__, made
        )
        right = self.function.__code__
        # The code, not the name: whoever has imported the function has the defect as well.
        self.function.__code__ = made[self.function.__name__].__code__
        try:
            yield
        finally:
            self.function.__code__ = right


DEFECTS = {
    "a header with two tokens": Defect(
        "header", requests.bearer_token, ' and "," not in token', ""
    ),
    "base64url in two spellings": Defect(
        "token", compact_form._decode, '.rstrip(b"=") != segment', '[:0] != b""'
    ),
    "a member in other letters": Defect(
        "token", compact_form._key_id, "name.casefold() for name", "name for name"
    ),
    "any type of token": Defect("token", compact_form._key_id, "not in TOKEN_TYPES", "== 0"),
    "no signature": Defect("token", access_tokens._verify, "if not is_genuine", "if False"),
    "a name twice": Defect(
        "token", strict_json._no_name_twice, "len(members) != len(pairs)", "False"
    ),
    "true as a date": Defect(
        "claims", access_tokens._date, "type(date) is not int", "not isinstance(date, int)"
    ),
    "scopes between any spaces": Defect(
        "claims", access_tokens._check_scope, 'split(" ")', "split()"
    ),
    "a part of the audience": Defect(
        "claims",
        access_tokens._tenant,
        "audience not in audiences",
        "not any(audience in each for each in audiences)",
    ),
    "a claim in other letters": Defect(
        "claims", access_tokens._check_names, "name.casefold() in", "name in"
    ),
    "a key of another tenant": Defect(
        "claims", access_tokens._tenant, '.replace("{tenantid}", tenant_id) != v2_issuer', ' == ""'
    ),
    "an expiry without end": Defect(
        "claims",
        access_tokens.check_dates,
        " or expires - issued_at > MAX_LIFETIME + CLOCK_SKEW",
        "",
    ),
    "a hint from elsewhere": Defect(
        "hints", unverified._find, "payload.count(quoted) != 1", "payload.count(quoted) < 1"
    ),
    "no scopes at all": Defect("body", requests._scopes, "0 < len(value)", "len(value)"),
    "an empty parameter": Defect(
        "query", requests._query_parameters, "not all(value for _, value in query)", "False"
    ),
    "a private key": Defect(
        "keys", key_sets.signing_keys_from, "_PRIVATE_MEMBERS.isdisjoint(jwk)", "True"
    ),
    "a key id twice": Defect(
        "keys", key_sets.signing_keys_from, "key_ids.count(key_id) > 1", "False"
    ),
    "keys from another host": Defect(
        "keys", key_sets.Publisher.location_of, '{self.authority}/")', '{self.authority}")'
    ),
    "any port": Defect("settings", endpoints._origin, " or parts.netloc != host", ""),
    "a key in the text of an error": Defect(
        "settings", endpoints._base64, "has no {name}= in base64", "{text} is not base64"
    ),
    "a date without a zone": Defect("acs", tokens.checked_token, "expires.tzinfo is None", "False"),
    "a token for somebody else": Defect(
        "acs", tokens.check_contents, "f\"8:{claims['skypeid']}\" not in acs_ids", "False"
    ),
    "more scopes than asked for": Defect(
        "acs", tokens.check_contents, 'not set(str(granted).split(",")).issubset(scopes)', "False"
    ),
    "groups that are too many": Defect(
        "policy", policy.rule_for, "if groups is None", "if groups == 0"
    ),
    "a rule that grants nothing": Defect(
        "policy", policy.Policy._scopes_of, "rule.scopes & self._scopes", "self._scopes"
    ),
    "any claims for the app": Defect(
        "entra", refusals._claims, "strict_json.loads_object(encoded)", "pass"
    ),
    "Entra's words in an error": Defect("entra", refusals._word, " and _WORD.fullmatch(value)", ""),
    "a person who may not be gone": Defect(
        "graph", graph._object_id, "is_guid(object_id)", "isinstance(object_id, str)"
    ),
}
