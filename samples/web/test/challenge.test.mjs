import assert from "node:assert/strict";
import { test } from "node:test";
import { challengeParameters, claimsOf } from "../.compiled/challenge.js";

const CLAIMS = '{"access_token":{"nbf":{"essential":true,"value":"1764000000"}}}';
const challenge = (claims) => `Bearer realm="acs-token-broker", error="insufficient_claims", claims="${claims}"`;

test("the parameters of a challenge are read, whatever their order, case and quotes", () => {
  const found = challengeParameters('bearer Realm="a, \\"b\\"" ,error=invalid_token,  scope=""');
  assert.deepEqual([...found], [["realm", 'a, "b"'], ["error", "invalid_token"], ["scope", ""]]);
});

test("a challenge of another scheme has no claims", () => {
  assert.equal(claimsOf(undefined, `Basic claims="${btoa(CLAIMS)}"`), undefined);
});

test("the problem's claims come first, and are taken as they are", () => {
  assert.equal(claimsOf({ claims: CLAIMS }, challenge(btoa('{"other":{}}'))), CLAIMS);
});

for (const [what, encoded] of [
  ["base64", btoa(CLAIMS)],
  ["base64url without padding", btoa(CLAIMS).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "")],
]) {
  test(`the header's claims are decoded from ${what}`, () => {
    assert.equal(claimsOf({}, challenge(encoded)), CLAIMS);
  });
}

test("claims in other letters than ASCII are decoded as UTF-8", () => {
  const claims = '{"access_token":{"name":{"value":"Zoë"}}}';
  const encoded = Buffer.from(claims, "utf-8").toString("base64");
  assert.equal(claimsOf(null, challenge(encoded)), claims);
});

for (const wrong of ["%%%", btoa("[]"), btoa("null"), btoa("no JSON"), ""]) {
  test(`what is not a claims request is left alone: ${JSON.stringify(wrong)}`, () => {
    assert.equal(claimsOf({ claims: 7 }, challenge(wrong)), undefined);
  });
}

test("without a challenge there are no claims", () => {
  assert.equal(claimsOf({}, null), undefined);
});
