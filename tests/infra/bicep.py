"""Evaluates Bicep templates without the compiler: the names, scopes and properties of resources.

It supports only the parts of the language that the templates here use, and fails on anything else.
Values that only Azure knows, such as an identity's object id, are a `Later`, which can be passed
on and compared.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SUBSCRIPTION = "99999999-9999-4999-8999-999999999999"
TENANT = "88888888-8888-4888-8888-888888888888"

TOKENS = re.compile(
    r"(?P<space>[ \t\r]+|//[^\n]*|/\*.*?\*/|#disable-next-line[^\n]*)"
    r"|(?P<newline>\n)"
    r"|'''(?P<raw>.*?)'''"
    r"|(?P<quote>')"
    r"|(?P<number>\d+)"
    r"|(?P<name>[A-Za-z_]\w*)"
    r"|(?P<mark>=>|==|!=|<=|>=|&&|\|\||\?\?|\.\?|::|[-+*/%<>=!?:.,()\[\]{}@|])",
    re.DOTALL,
)
ESCAPES = {"\\'": "'", "\\\\": "\\", "\\n": "\n", "\\$": "$"}
# Operators with higher numbers bind more tightly.
BINDING = {
    "??": 1,
    "||": 2,
    "&&": 3,
    "==": 4,
    "!=": 4,
    "<": 5,
    ">": 5,
    "<=": 5,
    ">=": 5,
    "+": 6,
    "-": 6,
    "*": 7,
    "/": 7,
}


class FailError(Exception):
    """The template refused its parameters."""


class Later(str):
    """A value that is known only after deployment; the string says where it comes from."""

    __slots__ = ()

    def member(self, name: str) -> Later:
        return Later(f"{self}.{name}")


class Token(NamedTuple):
    """A piece of the text: its kind and value."""

    kind: str
    value: Any


class Scope:
    """Names and their values, which are evaluated on first use."""

    def __init__(self, outer: Scope | None = None, **values: Any) -> None:
        self.outer = outer
        self.recipes: dict[str, Callable[[], Any]] = {}
        self.values: dict[str, Any] = dict(values)

    def __getitem__(self, name: str) -> Any:
        if name in self.values:
            return self.values[name]
        if name in self.recipes:
            self.values[name] = self.recipes[name]()
            return self.values[name]
        if self.outer is None:
            raise KeyError(name)
        return self.outer[name]


Expression = Callable[[Scope], Any]


@dataclass
class Declaration:
    """One statement of a file."""

    kind: str
    name: str
    of: str = ""  # The type of a resource, or the file of a module.
    value: Expression | None = None
    existing: bool = False
    condition: Expression | None = None
    loop: tuple[list[str], Expression] | None = None
    parameters: list[str] = field(default_factory=list)
    nested: list[Declaration] = field(default_factory=list)


def tokens_of(text: str) -> list[Token]:
    """Split a text into tokens; a string literal becomes a list of strings and expressions."""
    found: list[Token] = []
    at = 0
    while at < len(text):
        match = TOKENS.match(text, at)
        assert match, text[at : at + 60]
        at = match.end()
        kind = str(match.lastgroup)
        if kind == "quote":
            parts, at = _string(text, at)
            found.append(Token("string", parts))
        elif kind == "raw":
            found.append(Token("string", [match["raw"].removeprefix("\n")]))
        elif kind != "space":
            found.append(Token(kind, match[kind]))
    return [*found, Token("end", "")]


def _string(text: str, at: int) -> tuple[list[Any], int]:
    parts: list[Any] = [""]
    while text[at] != "'":
        if text[at] == "\\":
            parts[-1] += ESCAPES[text[at : at + 2]]
            at += 2
        elif text.startswith("${", at):
            start, depth, at = at + 2, 1, at + 2
            while depth:
                if text[at] == "'":
                    _, at = _string(text, at + 1)
                else:
                    depth += {"{": 1, "}": -1}.get(text[at], 0)
                    at += 1
            parts += [Parser(text[start : at - 1]).expression(), ""]
        else:
            parts[-1] += text[at]
            at += 1
    return parts, at + 1


class Parser:
    """Parses tokens into expressions and declarations."""

    def __init__(self, text: str) -> None:
        self.tokens = tokens_of(text)
        self.at = 0
        self.nested: list[Declaration] = []

    def peek(self, ahead: int = 0) -> Token:
        return self.tokens[min(self.at + ahead, len(self.tokens) - 1)]

    def take(self, value: Any = None) -> Any:
        token = self.peek()
        assert value is None or token.value == value, (
            value,
            self.tokens[self.at - 3 : self.at + 3],
        )
        self.at += 1
        return token.value

    def skip_lines(self) -> None:
        while self.peek().kind == "newline":
            self.at += 1

    def after_lines(self, *marks: str) -> bool:
        """Return whether one of these marks is next, skipping line ends; if so, move to it."""
        ahead = 0
        while self.peek(ahead).kind == "newline":
            ahead += 1
        if self.peek(ahead).kind == "mark" and self.peek(ahead).value in marks:
            self.at += ahead
            return True
        return False

    # Expressions

    def expression(self, least: int = 0) -> Expression:
        self.skip_lines()
        left = self._unary()
        while self.after_lines(*BINDING):
            mark = self.peek().value
            if BINDING[mark] <= least:
                break
            self.take()
            left = partial(_operate, mark, left, self.expression(BINDING[mark]))
        if not least and self.after_lines("?"):
            self.take()
            yes = self.expression()
            assert self.after_lines(":")
            self.take()
            left = partial(_choose, left, yes, self.expression())
        return left

    def _unary(self) -> Expression:
        if self.peek() == ("mark", "!"):
            self.take()
            operand = self._unary()
            return lambda scope: not operand(scope)
        found = self._primary()
        while self.peek().kind == "mark":
            mark = self.peek().value
            if mark == "!":
                self.take()
            elif mark in {".", ".?", "::"}:
                self.take()
                name = self.take()
                if self.peek() == ("mark", "(") and mark == ".":  # As in `az.environment()`.
                    found = self._call(name)
                else:
                    found = partial(_member, found, name, mark == ".?")
            elif mark == "[":
                self.take()
                index = self.expression()
                self.after_lines("]")
                self.take("]")
                found = partial(_index, found, index)
            else:
                break
        return found

    def _primary(self) -> Expression:
        token = self.peek()
        if token.kind == "string":
            self.take()
            return partial(_text, token.value)
        if token.kind == "number":
            return _constant(int(self.take()))
        if token.kind == "name":
            return self._named()
        if token.value == "[":
            return self._array()
        if token.value == "{":
            return self._object()
        self.take("(")
        found = self.expression()
        self.after_lines(")")
        self.take(")")
        return found

    def _named(self) -> Expression:
        name = self.take()
        if name in {"true", "false", "null"}:
            return _constant({"true": True, "false": False, "null": None}[name])
        if self.peek() == ("mark", "=>"):
            self.take()
            body = self.expression()
            return lambda scope: lambda value: body(Scope(scope, **{name: value}))
        if self.peek() == ("mark", "("):
            return self._call(name)
        return lambda scope: scope[name]

    def _call(self, name: str) -> Expression:
        self.take("(")
        arguments = []
        while not self.after_lines(")"):
            arguments.append(self.expression())
            if self.after_lines(","):
                self.take()
        self.take(")")
        return lambda scope: scope[f"{name}()"](*[argument(scope) for argument in arguments])

    def _array(self) -> Expression:
        self.take("[")
        self.skip_lines()
        if self.peek() == ("name", "for"):
            loop, _, body = self._for()
            return lambda scope: [body(inner) for inner in _rounds(loop, scope)]
        items = []
        while not self.after_lines("]"):
            items.append(self.expression())
            if self.after_lines(","):
                self.take()
        self.take("]")
        return lambda scope: [item(scope) for item in items]

    def _for(self) -> tuple[tuple[list[str], Expression], Expression | None, Expression]:
        self.take("for")
        names = [self.take()] if self.peek().value != "(" else []
        if not names:
            self.take("(")
            names = [self.take()]
            self.take(",")
            names.append(self.take())
            self.take(")")
        self.take("in")
        items = self.expression()
        self.take(":")
        condition = self._if()
        body = self.expression()
        self.after_lines("]")
        self.take("]")
        return (names, items), condition, body

    def _if(self) -> Expression | None:
        if self.peek() != ("name", "if"):
            return None
        self.take()
        return self._primary()

    def _object(self) -> Expression:
        self.take("{")
        members: list[tuple[Expression, Expression]] = []
        while not self.after_lines("}"):
            self.skip_lines()
            if self.peek().value == "resource" and self.peek(1).kind == "name":
                self.nested.append(self._resource())
            else:
                key = self._key()
                self.take(":")
                members.append((key, self.expression()))
            if self.after_lines(","):
                self.take()
        self.take("}")
        return lambda scope: {str(key(scope)): value(scope) for key, value in members}

    def _key(self) -> Expression:
        token = self.peek()
        self.take()
        return partial(_text, token.value) if token.kind == "string" else _constant(token.value)

    # Declarations

    def declarations(self) -> Iterator[Declaration]:
        while True:
            self.skip_lines()
            token = self.peek()
            if token.kind == "end":
                return
            if token.value == "@":
                self.take()
                self._unary()
            elif token.value in {"resource", "module"}:
                yield self._resource()
            elif token.value == "import":
                yield self._import()
            elif token.value in {"targetScope", "type", "using"}:
                self._skip_statement()
            else:
                yield self._value()

    def _value(self) -> Declaration:
        kind, name = self.take(), self.take()
        assert kind in {"param", "var", "output", "func"}, kind
        found = Declaration(kind, name)
        if kind == "func":
            self.take("(")
            while self.peek().value != ")":
                found.parameters.append(self.take())
                self.take()  # Its type.
                if self.peek().value == ",":
                    self.take()
            self.take(")")
        end = "=>" if kind == "func" else "="
        depth = 0
        while depth or (self.peek().kind not in {"newline", "end"} and self.peek().value != end):
            value = self.take()
            depth += {"{": 1, "}": -1}.get(value if isinstance(value, str) else "", 0)
        if self.peek().value == end:
            self.take()
            found.value = self.expression()
        return found

    def _resource(self) -> Declaration:
        outer, self.nested = self.nested, []
        found = Declaration(self.take(), self.take(), of="".join(self.take()))
        if self.peek().value == "existing":
            self.take()
            found.existing = True
        self.take("=")
        if self.peek().value == "[":
            self.take()
            self.skip_lines()
            found.loop, found.condition, found.value = self._for()
        else:
            found.condition = self._if()
            found.value = self.expression()
        found.nested, self.nested = self.nested, outer
        return found

    def _import(self) -> Declaration:
        self.take("import")
        self.take("{")
        names = []
        while self.peek().value != "}":
            names.append(self.take())
            if self.peek().value == ",":
                self.take()
        self.take("}")
        self.take("from")
        return Declaration("import", "", of="".join(self.take()), parameters=names)

    def _skip_statement(self) -> None:
        depth = 0
        while depth or self.peek().kind not in {"newline", "end"}:
            value = self.take()
            depth += {"{": 1, "}": -1}.get(value if isinstance(value, str) else "", 0)


def _constant(value: Any) -> Expression:
    return lambda _scope: value


def _text(parts: list[Any], scope: Scope) -> str:
    texts = [part if isinstance(part, str) else _as_text(part(scope)) for part in parts]
    found = "".join(texts)
    return Later(found) if any(isinstance(part, Later) for part in texts) else found


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":"))


def _operate(mark: str, left: Expression, right: Expression, scope: Scope) -> Any:
    if mark == "&&":
        return left(scope) and right(scope)
    if mark == "||":
        return left(scope) or right(scope)
    if mark == "??":
        found = left(scope)
        return right(scope) if found is None else found
    one, other = left(scope), right(scope)
    return {
        "==": lambda: one == other,
        "!=": lambda: one != other,
        "<": lambda: one < other,
        ">": lambda: one > other,
        "<=": lambda: one <= other,
        ">=": lambda: one >= other,
        "+": lambda: one + other,
        "-": lambda: one - other,
        "*": lambda: one * other,
        "/": lambda: one // other,
    }[mark]()


def _choose(condition: Expression, yes: Expression, no: Expression, scope: Scope) -> Any:
    return yes(scope) if condition(scope) else no(scope)


def _member(of: Expression, name: str, optional: bool, scope: Scope) -> Any:
    found = of(scope)
    if optional and (found is None or (isinstance(found, dict) and name not in found)):
        return None
    if isinstance(found, Later):
        return found.member(name)
    return found[name] if isinstance(found, dict) else found.member(name)


def _index(of: Expression, index: Expression, scope: Scope) -> Any:
    return of(scope)[index(scope)]


def _rounds(loop: tuple[list[str], Expression], scope: Scope) -> Iterator[Scope]:
    names, items = loop
    for position, item in enumerate(items(scope)):
        yield Scope(scope, **dict(zip(names, [item, position], strict=False)))


def _digest(*parts: Any) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def _fail(message: str) -> None:
    raise FailError(message)


def _union(*values: Any) -> Any:
    if isinstance(values[0], dict):
        merged: dict[str, Any] = {}
        for value in values:
            for key, member in value.items():
                both = isinstance(member, dict) and isinstance(merged.get(key), dict)
                merged[key] = _union(merged[key], member) if both else member
        return merged
    found: list[Any] = []
    for item in chain(*values):
        if item not in found:
            found.append(item)
    return found


def _contains(where: Any, what: Any) -> bool:
    return what in where


# Azure's functions whose results do not depend on the deployment.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "concat": lambda *lists: list(chain(*lists)),
    "contains": _contains,
    "empty": lambda value: not value,
    "endsWith": str.endswith,
    "fail": _fail,
    "filter": lambda items, keep: [item for item in items if keep(item)],
    "first": lambda items: items[0],
    "flatten": lambda lists: list(chain(*lists)),
    "guid": lambda *parts: f"guid-{_digest(*parts)[:16]}",
    "items": lambda of: [{"key": key, "value": of[key]} for key in sorted(of)],
    "join": lambda items, by: by.join(items),
    "last": lambda items: items[-1],
    "length": len,
    "map": lambda items, into: [into(item) for item in items],
    "max": max,
    "padLeft": lambda value, width, by: str(value).rjust(width, by),
    "range": lambda start, count: list(range(start, start + count)),
    "replace": str.replace,
    "split": str.split,
    "string": _as_text,
    "substring": lambda of, at, count: of[at : at + count],
    "toLower": str.lower,
    "trim": str.strip,
    "union": _union,
    "uriComponent": partial(quote, safe=""),
    "uniqueString": lambda *parts: _digest(*parts)[:13],
    "cidrSubnet": lambda prefix, size, at: f"{prefix}#{at}/{size}",
    "environment": lambda: {
        "authentication": {"loginEndpoint": "https://login.microsoftonline.com/"},
        "suffixes": {"storage": "core.windows.net"},
    },
    "subscription": lambda: {
        "id": f"/subscriptions/{SUBSCRIPTION}",
        "subscriptionId": SUBSCRIPTION,
    },
    "subscriptionResourceId": lambda of, name: (
        f"/subscriptions/{SUBSCRIPTION}/providers/{of}/{name}"
    ),
    "tenant": lambda: {"tenantId": TENANT},
}


def built_in() -> Scope:
    """Return a scope with Azure's functions."""
    scope = Scope()
    scope.values |= {f"{name}()": function for name, function in FUNCTIONS.items()}
    return scope


@dataclass
class Resource:
    """A resource as the template declares it."""

    type: str
    body: dict[str, Any]
    container: str  # Id of the resource or group that it is in, or that it extends.
    extends: bool
    nested: dict[str, Resource] = field(default_factory=dict)

    @property
    def id(self) -> str:
        name = self.body["name"]
        if self.type == "Microsoft.Resources/resourceGroups":
            return f"{self.container}/resourceGroups/{name}"
        if "/providers/" in self.container and not self.extends:
            return f"{self.container}/{self.type.rpartition('/')[2]}/{name}"
        return f"{self.container}/providers/{self.type}/{name}"

    def __getitem__(self, name: str) -> Any:
        return self.body[name]

    def member(self, name: str) -> Any:
        if name in self.nested:
            return self.nested[name]
        if name == "id":
            return self.id
        return self.body[name] if name == "name" else Later(f"<{self.id}>.{name}")


class Deployment:
    """A template with its parameters, its resources and its outputs."""

    def __init__(
        self, path: Path, parameters: dict[str, Any], *, now: str, within: str | None = None
    ) -> None:
        self.path, self.now, self.within = path, now, within
        self.container = within or f"/subscriptions/{SUBSCRIPTION}"
        self.resources: list[Resource] = []
        self.scope = Scope(built_in())
        self.scope.values |= {
            "loadTextContent()": lambda name: (path.parent / name).read_text(),
            "resourceGroup()": self._group,
            "resourceId()": lambda of, name: f"{self.container}/providers/{of}/{name}",
            "utcNow()": lambda form="u": f"{now}({form})",
        }
        self.outputs = Scope(self.scope)
        self._pending: list[str] = []
        declared = {}
        for declaration in Parser(path.read_text()).declarations():
            self._declare(declaration, parameters)
            declared[declaration.name] = declaration
        unknown = set(parameters) - {name for name, it in declared.items() if it.kind == "param"}
        assert not unknown, (path.name, unknown)
        for name in self._pending:
            _ = self.scope[name]

    def _group(self, *parts: str) -> Any:
        if not parts:
            return {"id": self.container}
        subscription, name = parts if len(parts) == 2 else (SUBSCRIPTION, parts[0])
        return f"/subscriptions/{subscription}/resourceGroups/{name}"

    def _declare(self, it: Declaration, parameters: dict[str, Any]) -> None:
        recipes = self.scope.recipes
        if it.kind == "param":
            given = _constant(parameters[it.name]) if it.name in parameters else it.value
            recipes[it.name] = partial(given or _constant(None), self.scope)
        elif it.kind == "var":
            assert it.value
            recipes[it.name] = partial(it.value, self.scope)
        elif it.kind == "output":
            assert it.value
            self.outputs.recipes[it.name] = partial(it.value, self.scope)
            self.outputs.values.pop(it.name, None)
        elif it.kind == "func":
            recipes[f"{it.name}()"] = lambda: partial(self._function, it)
        elif it.kind == "import":
            other = Deployment(self.path.parent / it.of, {}, now=self.now, within=self.within)
            for name in it.parameters:
                if f"{name}()" in other.scope.recipes:
                    recipes[f"{name}()"] = partial(other.scope.__getitem__, f"{name}()")
        else:
            recipes[it.name] = partial(self._make, it, self.scope)
            self._pending.append(it.name)

    def _function(self, it: Declaration, *arguments: Any) -> Any:
        assert it.value
        return it.value(Scope(self.scope, **dict(zip(it.parameters, arguments, strict=True))))

    def _make(self, it: Declaration, scope: Scope, owner: Resource | None = None) -> Any:
        if it.loop:
            return [self._one(it, inner, owner) for inner in _rounds(it.loop, scope)]
        return self._one(it, scope, owner)

    def _one(self, it: Declaration, scope: Scope, owner: Resource | None) -> Any:
        assert it.value
        wanted = it.condition is None or bool(it.condition(scope))
        if it.kind == "module":
            if not wanted:
                return {"outputs": Scope()}
            body = it.value(scope)
            target = body.get("scope", self.within)
            within = target.id if isinstance(target, Resource) else target
            made = Deployment(
                self.path.parent / it.of, body.get("params", {}), now=self.now, within=within
            )
            self.resources += made.resources
            return {"outputs": {name: made.outputs[name] for name in made.outputs.recipes}}
        kind = it.of.partition("@")[0]
        if owner:
            kind = f"{owner.type}/{kind}"
        if not wanted:
            return None
        body = it.value(scope)
        extended = body.pop("scope", None)
        parent = owner or body.pop("parent", None) or extended
        container = parent.id if isinstance(parent, Resource) else parent or self.container
        found = Resource(kind, body, container, extends=isinstance(extended, Resource))
        for inner in it.nested:
            found.nested[inner.name] = self._make(inner, scope, found)
        if not it.existing:
            self.resources.append(found)
        return found


def parameters_of(path: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Return the parameters of a parameter file, with these environment variables."""

    def read(name: str, default: str | None = None) -> str:
        found = environment.get(name, default)
        if found is None:
            raise FailError(f"{name} is missing")
        return found

    scope = Scope(built_in())
    scope.values["readEnvironmentVariable()"] = read
    given: dict[str, Any] = {}
    for it in Parser(path.read_text()).declarations():
        assert it.value
        scope.recipes[it.name] = partial(it.value, scope)
        if it.kind == "param":
            given[it.name] = scope[it.name]
    return given
