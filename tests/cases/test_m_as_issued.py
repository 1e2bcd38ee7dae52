"""M: what Entra really issues, and has to be accepted, however odd it looks."""

from __future__ import annotations

import json
import time
import uuid
from typing import TYPE_CHECKING, Any

from local.entra.directory import BROKER, CONTOSO, FABRIKAM, FADI, GRACE, GUEST, WEB_APP
from tests.cases.catalogue import case
from tests.cases.issued import good
from tests.tokens import as_json, parts_of, signed

if TYPE_CHECKING:
    from local.entra.emulator import EntraEmulator
    from tests.cases.odd_keys import OddKey
    from tests.cases.service import Service


def tokens(service: Service, *changes: dict[str, Any]) -> dict[str, str]:
    """Return tokens of new people with each of these changes."""
    return {repr(each)[:80]: service.running.token_of_new_person(**each) for each in changes}


@case("M01", "a version 2 token with all its usual claims: 200")
async def test_M01_version_2(service: Service, entra: EntraEmulator) -> None:
    as_documented = good(entra).claims
    usual = "aud azp azpacr exp iat iss name nbf oid preferred_username rh scp sub tid uti ver aio"
    assert set(usual.split()) <= as_documented.keys()
    await service.accepts(
        {
            "a user's": entra.issue_access_token(),
            "an administrator's": entra.issue_access_token(GRACE.user_name),
            "another tenant's": entra.issue_access_token(FADI.user_name),
            "with the client's secret": entra.issue_access_token(authentication="1"),
            "with the client's certificate": entra.issue_access_token(authentication="2"),
            **tokens(
                service,
                {"sid": str(uuid.uuid4()), "sub": "AAAAAAAAAAAAAAAAAAAAAIkzqFVrSaSaFHy782bbtaQ"},
                {
                    "xms_tcdt": 1571867320,
                    "xms_idrel": "1 30",
                    "xms_ftd": "x",
                    "xms_st": {"sub": "x"},
                },
                {
                    "aio": "AXQAi/8IAAAAFm+E/QTG+gFnVxLjWdw8K+61AGrSOuMMF6ebaMj7XO3Ibm=",
                    "rh": "0.AS",
                },
                {"email": "ada@contoso.example", "xms_edov": True, "tenant_region_scope": "EU"},
                {"azpacr": "0", "acct": 0, "xms_cc": ["cp1"], "ctry": "DE", "tenant_ctry": "DE"},
            ),
        }
    )


@case("M02", "a version 1 token, with appid and the URI as audience: 200")
async def test_M02_version_1(service: Service, entra: EntraEmulator) -> None:
    token = entra.issue_access_token(version=1)
    claims = parts_of(token).claims
    assert ("1.0", WEB_APP.client_id) == (claims["ver"], claims["appid"])
    assert f"https://sts.windows.net/{CONTOSO.tenant_id}/" == claims["iss"]
    await service.accepts(
        {
            "URI": token,
            "client id": entra.issue_access_token(version=1, audience=BROKER.client_id),
            "another tenant's": entra.issue_access_token(FADI.user_name, version=1),
            "a guest's": entra.issue_access_token(GUEST.user_name, version=1),
            "an administrator's": entra.issue_access_token(GRACE.user_name, version=1),
        }
    )


@case("M03", "claims that are new, nested, null, empty or numbers with a fraction: 200")
async def test_M03_new_claims(service: Service, entra: EntraEmulator) -> None:
    parts, key = good(entra), entra.keys[0].private_key
    odd = b'{"xms_null":null,"xms_e":1E-7,"xms_big":123456789012345678901,"":1,' + parts.payload[1:]
    variants = tokens(
        service,
        {"xms_new": {"a": [1, 2.5, {"b": None}]}, "empty": [], "nothing": {}, "none": ""},
        {"deep": [[[[[[[[[[1]]]]]]]]]], "zero": 0, "less": -1, "float": -0.0, "yes": True},
        {"xms_pftexp": 1571867320.25, "with space": 1, "http://schemas.contoso.example/x": ["y"]},
        {"__proto__": {"oid": "x"}, "constructor": "x", "$ref": "#", "@type": "x"},
        {"nested": {"oid": "x", "tid": "y", "OID": "z", "exp": 0}},
    )
    await service.accepts(variants | {"null, and long numbers": signed(key, parts.header, odd)})


@case("M04", "70 flat arrays, since nesting is depth and not the number of brackets: 200")
async def test_M04_many_arrays(service: Service) -> None:
    await service.accepts(
        tokens(
            service,
            {f"a{number}": [] for number in range(70)},
            {"many": [[] for _ in range(70)]},
            {"many": [{} for _ in range(200)]},
            {"text": "[" * 500 + "{" * 500},
        )
    )


@case("M05", "claims that decide nothing, in two spellings: 200")
async def test_M05_two_spellings(service: Service) -> None:
    await service.accepts(
        tokens(
            service,
            {"extn.Dept": "a", "extn.dept": "b", "EmployeeId": 1, "employeeid": 2},
            {"Name": "x", "NAME": "y", "Email": "a", "email": "b", "UPN": "x", "upn": "y"},
            {"Groups": ["x"], "department": "x", "Department": "y", "uti": "x", "UTI": "y"},
        )
    )


@case("M06", "names in any script, raw or escaped, and escaped slashes: 200")
async def test_M06_any_script(service: Service, entra: EntraEmulator) -> None:
    names = [
        "Zoë 漢字 😀",
        "Иван",
        "محمد",
        "שלום",
        "Åse Ødegård",
        "\u202eevil",
        "a\u0301",
        "\u200d",
    ]
    names += ["\x7f"]
    names += ['"quoted"', "back\\slash", "tab\tline\nend", "<script>", "'; DROP TABLE", "%00"]
    names += ["💂🏽‍♀️"]
    variants = {}
    for name in names:
        parts = good(entra, name=name, family_name=name)
        raw = json.dumps(parts.claims, ensure_ascii=False, separators=(",", ":")).encode()
        slashes = parts.payload.replace(b"/", rb"\/")
        key = entra.keys[0].private_key
        variants[f"{name!r}, escaped"] = str(parts)
        variants[f"{name!r}, raw"] = signed(key, parts.header, raw)
        variants[f"{name!r}, slashes"] = signed(key, parts.header, slashes)
    parts = good(entra)
    escaped = parts.payload.replace(b'"oid"', rb'"\u006fid"').replace(b'"2.0"', rb'"\u0032.0"')
    variants["deciding names escaped"] = signed(entra.keys[0].private_key, parts.header, escaped)
    await service.accepts(variants)


@case("M07", "compact or spaced JSON, members in any order, in header and payload: 200")
async def test_M07_any_order(service: Service, entra: EntraEmulator) -> None:
    key = entra.keys[0].private_key
    variants = {}
    for name, separators, indent in (
        ("compact", (",", ":"), None),
        ("spaced", (", ", ": "), None),
        ("indented", (",", ": "), 2),
        ("tabs", (",", ":"), "\t"),
    ):
        for order in (1, -1):
            parts = good(entra)
            header, payload = (
                json.dumps(
                    dict(list(members.items())[::order]), indent=indent, separators=separators
                ).encode()
                for members in (parts.members, parts.claims)
            )
            variants[f"{name}, {order}"] = signed(key, header, payload)
            windows = payload.replace(b"\n", b"\r\n")
            variants[f"{name}, {order}, CRLF"] = signed(key, header, windows)
    await service.accepts(variants)


def lasting(service: Service, seconds: int, **claims: Any) -> str:
    """Return a token that was issued just now, five minutes back as Entra does, and lasts."""
    now = int(time.time())
    issued = {"iat": now - 300, "nbf": now - 300}
    return service.running.token_of_new_person(**issued, exp=now + seconds, **claims)


@case("M08", "a token of 20 to 28 hours under continuous access evaluation: 200")
async def test_M08_continuous_access_evaluation(service: Service) -> None:
    capable = {"xms_cc": ["cp1"], "xms_ssm": "1", "sid": str(uuid.uuid4())}
    hours = (20, 24, 27, 27.9)
    await service.accepts(
        {f"{each} h": lasting(service, int(each * 3600), **capable) for each in hours}
    )


@case("M09", "a token of 10 minutes, from a configured lifetime: 200")
async def test_M09_short_token(service: Service) -> None:
    seconds = (600, 300, 60, 10)
    await service.accepts({f"{each} s": lasting(service, each) for each in seconds})


@case("M10", "signed by the second key of the set, or one of 4096 bits: 200")
async def test_M10_other_keys(
    service: Service, entra: EntraEmulator, odd_keys: dict[str, OddKey]
) -> None:
    claims = {"oid": str(uuid.uuid4())}
    large = odd_keys["of-4096-bits"].sign({"typ": "JWT", "alg": "RS256"}, good(entra).payload)
    v1 = parts_of(entra.issue_access_token(version=1))
    await service.accepts(
        {
            **{
                f"key {number}": entra.issue_access_token(claims=claims, key=key.private_key)
                for number, key in enumerate(entra.keys[:2])
            },
            "4096 bits": large,
            "4096 bits, version 1": odd_keys["of-4096-bits"].sign(v1.members, v1.payload),
        }
    )


@case("M11", "a guest of another tenant, whose tid is ours: 200")
async def test_M11_guest(service: Service, entra: EntraEmulator) -> None:
    home = f"https://sts.windows.net/{FABRIKAM.tenant_id}/"
    issued = entra.issue_access_token(GUEST.user_name)
    claims = parts_of(issued).claims
    assert (CONTOSO.tenant_id, home, 1) == (claims["tid"], claims["idp"], claims["acct"])
    external = {"idp": "https://sts.windows.net/9188040d-6c67-4c5b-b112-36a304b66dad/"}
    await service.accepts(
        {"as issued": issued, **tokens(service, {"acct": 1, "idp": home}, external)}
    )


@case("M12", "about 22 KiB, with the names of 200 on-premises groups: 200")
async def test_M12_group_names(service: Service) -> None:
    names = [f"CONTOSO\\Department of long names {number:04} and more" for number in range(200)]
    long = [f"{name} {'x' * 26}" for name in names]
    variants = tokens(service, {"groups": names}, {"groups": long, "wids": [str(uuid.uuid4())]})
    variants["GUIDs"] = service.running.token_of_new_person(
        groups=[str(uuid.uuid4()) for _ in range(200)]
    )
    assert 21_000 < max(len(token) for token in variants.values()) < 24 * 1024
    await service.accepts(variants)


@case("M13", "roles, wids, idtyp user, amr, acrs, auth_time and the like beside scp: 200")
async def test_M13_other_claims(service: Service) -> None:
    await service.accepts(
        tokens(
            service,
            {
                "roles": ["Reader", "Mappings.Admin"],
                "wids": ["b79fbf4d-3ef9-4689-8143-76b194e85509"],
            },
            {
                "idtyp": "user",
                "amr": ["pwd", "mfa", "rsa"],
                "acrs": ["c1", "p1", "urn:user:riskyuser"],
            },
            {"auth_time": 1, "ipaddr": "192.0.2.1", "login_hint": "O.x", "onprem_sid": "S-1-5-21"},
            {"ipaddr": "2001:db8::1", "in_corp": "true", "pwd_exp": "1", "pwd_url": "https://x"},
            {"roles": [], "groups": [], "wids": [], "amr": [], "acrs": []},
            {"acr": "1", "deviceid": str(uuid.uuid4()), "platf": "3", "signin_state": ["kmsi"]},
            {"cnf": {"kid": "x", "xms_ksl": "sw"}, "ztdid": "x", "vnet": "x", "fwd": "192.0.2.1"},
        )
    )


@case("M14", "several scopes, with ours first, last or in the middle: 200")
async def test_M14_several_scopes(service: Service) -> None:
    scopes = ["access_as_user", "access_as_user User.Read", "openid access_as_user User.Read"]
    scopes += ["openid profile offline_access access_as_user", "access_as_user access_as_user"]
    scopes += ["User.Read  access_as_user", " access_as_user "]
    await service.accepts(tokens(service, *({"scp": scope} for scope in scopes)))


@case("M15", "a clock 20 s ahead at Entra, or a token that ran out less than a minute ago: 200")
async def test_M15_clocks(service: Service) -> None:
    now = int(time.time())
    dates = {
        "20 s ahead": (20, 20, 3600),
        "50 s ahead": (50, 50, 3600),
        "just now": (0, 0, 3600),
        "ran out 20 s ago": (-3600, -3600, -20),
        "ran out 50 s ago": (-3600, -3600, -50),
        "nbf before iat": (0, -300, 3600),
        "nbf after iat": (-300, 0, 3600),
    }
    await service.accepts(
        {
            name: service.running.token_of_new_person(
                iat=now + issued, nbf=now + begins, exp=now + ends
            )
            for name, (issued, begins, ends) in dates.items()
        }
    )


@case("M16", "a header with an unknown harmless member, with or without x5t: 200")
async def test_M16_header(service: Service, entra: EntraEmulator) -> None:
    parts, key = good(entra), entra.keys[0].private_key
    bare = {name: parts.members[name] for name in ("alg", "typ", "kid")}
    changes: list[dict[str, Any]] = [{}, {"x5t": parts.members["kid"]}, {"new": "member"}]
    changes += [{"x5t#S256": "x"}, {"iat": 1}, {"ver": "2.0"}, {"xms": [1, {"a": None}]}]
    variants = {
        repr(each): signed(key, as_json(bare | each), good(entra).payload) for each in changes
    }
    variants["long"] = signed(key, as_json(bare | {"new": "x" * 300}), good(entra).payload)
    variants["other order"] = signed(
        key, as_json(dict(reversed(bare.items()))), good(entra).payload
    )
    await service.accepts(variants)
