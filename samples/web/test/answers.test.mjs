import assert from "node:assert/strict";
import { test } from "node:test";
import { readToken, timeLeft } from "../.compiled/answers.js";
import { parseConfig } from "../.compiled/config.js";

const MAPPED = { communicationUserId: "8:acs:a_b", id: "8:acs:a_b" };
const TEAMS = { microsoftTeamsUserId: "o", id: "8:orgid:o" };
const EXPIRES = "2026-11-23T20:11:30.039439+00:00";

test("whose token it is comes from the answer, not from the token", () => {
  const expiresOn = Date.parse("2026-11-23T20:11:30.039Z");
  const read = (user) => readToken({ token: "opaque", expiresOn: EXPIRES, user });
  const [acs, teams] = ["Communication Services user", "Teams user"];
  assert.deepEqual(read(MAPPED), { token: "opaque", expiresOn, identity: "8:acs:a_b", kind: acs });
  assert.deepEqual(read(TEAMS), { token: "opaque", expiresOn, identity: "8:orgid:o", kind: teams });
});

for (const answer of [
  undefined,
  "text",
  { expiresOn: EXPIRES, user: MAPPED },
  { token: "opaque", expiresOn: "tomorrow", user: MAPPED },
  { token: "opaque", expiresOn: EXPIRES },
]) {
  test(`what is not a token's answer is refused: ${JSON.stringify(answer)}`, () => {
    assert.throws(() => readToken(answer), { message: "unusable_answer" });
  });
}

for (const [milliseconds, text] of [
  [3_600_000, "1:00:00"],
  [3_599_001, "1:00:00"],
  [599_000, "9:59"],
  [1, "0:01"],
  [0, "0:00"],
  [-5000, "0:00"],
]) {
  test(`${milliseconds} ms are ${text}`, () => assert.equal(timeLeft(milliseconds), text));
}

const CONFIG = {
  clientId: "c",
  authority: "https://login.microsoftonline.com/organizations",
  brokerUrl: "https://broker.example/",
  brokerScope: "api://b/access_as_user",
};

test("a slash at the end of the broker's address does no harm", () => {
  assert.equal(parseConfig(CONFIG).brokerUrl, "https://broker.example");
});

for (const [changes, message] of [
  [{ clientId: "" }, /clientId is missing/],
  [{ brokerUrl: "broker.example" }, /brokerUrl is not a URL/],
  [{ brokerUrl: "http://broker.example" }, /brokerUrl must begin with https/],
  [{ authority: "http://login.example/t" }, /authority must begin with https/],
]) {
  test(`config.json is checked: ${message.source}`, () => {
    assert.throws(() => parseConfig({ ...CONFIG, ...changes }), { message });
  });
}

test("a broker on this computer may speak HTTP", () => {
  assert.equal(parseConfig({ ...CONFIG, brokerUrl: "http://127.0.0.1:7071" }).brokerUrl, "http://127.0.0.1:7071");
});
