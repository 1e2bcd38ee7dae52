import assert from "node:assert/strict";
import { test } from "node:test";
import { ATTEMPTS, retryAfterSeconds, secondsUntilNextAttempt, sleep } from "../.compiled/retry.js";

const NOW = Date.parse("2026-11-25T12:00:00Z");
const after = (status, retryAfter, { attempt = 1, elapsed = 0, random = 0, code = "busy" } = {}) =>
  secondsUntilNextAttempt({ code, status, retryAfter }, attempt, elapsed, random);

for (const [header, seconds] of [
  ["7", 7],
  [" 0 ", 0],
  ["Wed, 25 Nov 2026 12:00:30 GMT", 30],
  ["Wed, 25 Nov 2026 11:00:00 GMT", 0],
  ["soon", undefined],
  ["", undefined],
  [null, undefined],
]) {
  test(`Retry-After ${JSON.stringify(header)} means ${seconds}`, () => {
    assert.equal(retryAfterSeconds(header, NOW), seconds);
  });
}

test("no attempt is earlier than Retry-After, and the jitter spreads them", () => {
  assert.equal(after(503, 20), 20);
  assert.equal(after(503, 20, { random: 1 }), 30);
  assert.equal(after(429, 0, { random: 0.5 }), 1.25);
});

test("without Retry-After, each wait is twice as long", () => {
  assert.deepEqual([1, 2, 3, 4].map((attempt) => after(429, undefined, { attempt })), [1, 2, 4, 8]);
});

test("the last attempt is not followed by another", () => {
  assert.equal(after(503, 1, { attempt: ATTEMPTS }), undefined);
});

test("nobody is kept waiting for more than a minute in all", () => {
  assert.equal(after(503, 60), 60);
  assert.equal(after(503, 61), undefined);
  assert.equal(after(503, 20, { elapsed: 40 }), 20);
  assert.equal(after(503, 20, { elapsed: 40, random: 0.1 }), undefined);
});

for (const status of [400, 401, 403, 404, 500, 502]) {
  test(`${status} is not repeated`, () => {
    assert.equal(after(status, 1), undefined);
  });
}

test("settings that are wrong do not correct themselves", () => {
  assert.equal(after(503, 1, { code: "misconfigured" }), undefined);
});

test("a 502 of the host's and no answer are repeated", () => {
  assert.equal(after(502, undefined, { code: "http_502" }), 1);
  assert.equal(after(undefined, undefined, { code: "broker_unreachable" }), 1);
});

test("a wait ends at once when it is aborted", async () => {
  const controller = new AbortController();
  const waiting = sleep(3600, controller.signal);
  controller.abort(new Error("stopped"));
  await assert.rejects(waiting, /stopped/);
  await assert.rejects(sleep(3600, controller.signal), /stopped/);
});
