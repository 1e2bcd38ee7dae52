import assert from "node:assert/strict";
import { test } from "node:test";
import { ATTEMPTS, retryAfterSeconds, secondsUntilNextAttempt, sleep } from "../.compiled/retry.js";

const NOW = Date.parse("2026-11-25T12:00:00Z");
const after = (status, retryAfter, attempt = 1, random = 0) =>
  secondsUntilNextAttempt({ status, retryAfter }, attempt, random);

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
  assert.equal(after(503, 20, 1, 0), 20);
  assert.equal(after(503, 20, 1, 1), 25);
  assert.equal(after(429, 0, 1, 0.5), 0.5);
});

test("without Retry-After, each wait is twice as long", () => {
  assert.deepEqual([1, 2, 3, 4].map((attempt) => after(429, undefined, attempt)), [1, 2, 4, 8]);
});

test("the last attempt is not followed by another", () => {
  assert.equal(after(503, 1, ATTEMPTS), undefined);
});

test("nobody is kept waiting for minutes", () => {
  assert.equal(after(503, 61), undefined);
});

for (const status of [400, 401, 403, 404, 500, 502, undefined]) {
  test(`${status ?? "no answer"} is not repeated`, () => {
    assert.equal(after(status, 1), undefined);
  });
}

test("a wait ends at once when it is aborted", async () => {
  const controller = new AbortController();
  const waiting = sleep(3600, controller.signal);
  controller.abort(new Error("stopped"));
  await assert.rejects(waiting, /stopped/);
  await assert.rejects(sleep(3600, controller.signal), /stopped/);
});
