import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";
import { adviceFor, detailOf, endsToken, ProblemError, readProblem } from "../.compiled/problems.js";

const PROBLEM = { "Content-Type": "application/problem+json; charset=utf-8" };
const read = (status, headers, body) => readProblem(status, new Headers(headers), body, 0);

test("a problem is read, with the header's seconds", () => {
  const document = { status: 503, title: "Service Unavailable", code: "busy", detail: "d", traceId: "t" };
  const problem = read(503, { ...PROBLEM, "Retry-After": "7" }, JSON.stringify(document));
  assert.deepEqual(problem, { ...document, claims: undefined, retryAfter: 7 });
});

for (const [what, status, headers, body, code] of [
  ["429 without a body", 429, {}, "", "http_429"],
  ["503 as text", 503, { "Content-Type": "text/plain" }, "Function host is not running.", "http_503"],
  ["403 as HTML", 403, { "Content-Type": "text/html" }, "<h1>Web App - Unavailable</h1>", "http_403"],
  ["a problem that is cut off", 503, PROBLEM, '{"code": "bu', "http_503"],
  ["a problem that is no object", 500, PROBLEM, "[]", "http_500"],
  ["a problem without a code", 502, PROBLEM, '{"code": 7}', "http_502"],
]) {
  test(`the host's own answers have a text, too: ${what}`, () => {
    const problem = read(status, headers, body);
    assert.equal(problem.code, code);
    assert.doesNotMatch(adviceFor(problem).title, /answered with/);
  });
}

test("every code of the contract has a text of its own", async () => {
  const contract = await readFile(new URL("../../../shared/openapi.json", import.meta.url), "utf-8");
  const codes = new Set();
  JSON.parse(contract, (name, value) => {
    for (const code of (name === "code" && value?.enum) || []) codes.add(code);
    return value;
  });
  assert.ok(codes.size > 20, "the contract lists its codes");
  const unknown = adviceFor({ code: "unknown", status: 418 }).title;
  assert.match(unknown, /418/);
  for (const code of codes) {
    assert.notEqual(adviceFor({ code, status: 418 }).title, unknown, code);
  }
});

test("an unknown code is told in the broker's own words", () => {
  assert.deepEqual(adviceFor({ code: "new", title: "Something new", traceId: "t" }), {
    title: "Something new",
    next: "Tell the operator of the broker, and quote the trace id.",
  });
});

test("details are told once", () => {
  assert.equal(detailOf({ code: "busy", traceId: "t", detail: "d" }), undefined);
  assert.equal(detailOf({ code: "new", traceId: "t", detail: "d" }), "d");
  assert.equal(detailOf({ code: "sign_in_failed", detail: "d" }), "d");
});

test("what is not enabled is no alarm", () => {
  assert.equal(adviceFor({ code: "not_enabled", status: 404 }).calm, true);
});

for (const [problem, ends] of [
  [{ status: 401, code: "token_revoked" }, true],
  [{ status: 403, code: "not_assigned" }, true],
  [{ status: 404, code: "not_enabled" }, true],
  [{ status: 403, code: "http_403" }, false],
  [{ status: 500, code: "internal_error" }, false],
  [{ status: 502, code: "upstream_auth" }, false],
  [{ status: 503, code: "misconfigured" }, false],
  [{ code: "broker_unreachable" }, false],
  [{ code: "sign_in_needed" }, false],
  [{ code: "sign_in_needed", claims: "{}" }, true],
]) {
  const what = [problem.status, problem.code, problem.claims].join(" ").trim();
  test(`a token ${ends ? "is forgotten" : "stays"} after ${what}`, () => {
    assert.equal(endsToken(problem), ends);
  });
}

test("an error says nothing but the code", () => {
  const error = new ProblemError({ code: "token_revoked", claims: "{}", detail: "private" });
  assert.equal(error.message, "token_revoked");
});
