"""All targets of the fuzzer, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.fuzz.acs_answers import AcsTarget
from tests.fuzz.authorization import AuthorizationTarget
from tests.fuzz.claims import ClaimsTarget
from tests.fuzz.entra_answers import EntraTarget, GraphTarget
from tests.fuzz.environments import SettingsTarget
from tests.fuzz.hints import HintTarget
from tests.fuzz.key_sets import KeySetTarget
from tests.fuzz.policies import PolicyTarget
from tests.fuzz.requests import BodyTarget, QueryTarget
from tests.fuzz.tokens import TokenTarget

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fuzz.target import Target

TARGETS: dict[str, Callable[[], Target]] = {
    "header": AuthorizationTarget,
    "token": TokenTarget,
    "claims": ClaimsTarget,
    "hints": HintTarget,
    "body": BodyTarget,
    "query": QueryTarget,
    "keys": KeySetTarget,
    "settings": SettingsTarget,
    "policy": PolicyTarget,
    "acs": AcsTarget,
    "entra": EntraTarget,
    "graph": GraphTarget,
}
