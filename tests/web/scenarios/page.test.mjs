import assert from "node:assert/strict";
import { test } from "node:test";
import { ADDRESSES, fail, PHONE, putClockForward, Visit } from "./visit.mjs";

const MAPPED = "Mapped identity";

test("from sign-in to token to erasure, by keyboard", async () => {
  await Visit.make({}, async (visit) => {
    const { keyboard } = visit.page;
    const focused = () =>
      visit.page.evaluate(() => {
        const { outlineStyle, outlineWidth } = getComputedStyle(document.activeElement);
        const name = document.activeElement.closest("label")?.innerText.split("\n")[0];
        return [name ?? document.activeElement.textContent.trim(), `${outlineStyle} ${outlineWidth}`];
      });
    await visit.button("Sign in").waitFor();
    await visit.isAccessible();

    await keyboard.press("Tab");
    await keyboard.press("Enter");
    await visit.button("Ada").focus();
    await keyboard.press("Enter");
    await visit.page.getByRole("heading", { name: "Your tokens" }).waitFor();
    assert.equal(await visit.page.locator("#user-name").textContent(), "ada@contoso.example");
    assert.equal(await visit.page.title(), "Tokens for Azure Communication Services");
    await visit.isAccessible();

    // In the order in which they are read, each with a ring that shows, and out at the end.
    const stops = ["Sign out", "Scopes", ...Array(3).fill("Get a token"), "Sign out everywhere", "Erase …"];
    for (const stop of stops) {
      await keyboard.press("Tab");
      assert.deepEqual(await focused(), [stop, "solid 3px"]);
    }
    await keyboard.press("Tab");
    assert.ok(!stops.includes((await focused())[0]));

    const card = visit.card(MAPPED);
    await card.button("Get a token").focus();
    await keyboard.press("Enter");
    await card.becomes("valid");
    const identity = await card.text(".identity");
    assert.match(identity, /^8:acs:ac5ac5ac-0000-4000-8000-000000000001_/);
    assert.match(await card.text(".left"), /^(1:00:00|59:[0-5]\d)$/);
    assert.equal(await card.text(".scopes"), "all that the broker grants");
    assert.match(await visit.status, /^Mapped identity: you have a token, until \d\d:\d\d\.$/);
    assert.equal((await focused())[0], "Refresh now", "the focus has not gone anywhere");
    await visit.isAccessible();

    await card.element.getByLabel("Scopes").selectOption("Calls only");
    await card.get();
    await card.element.locator(".scopes", { hasText: /^voip$/ }).waitFor();
    assert.equal(await card.text(".identity"), identity);
    const [latest, first] = await visit.requests();
    assert.match(latest, /^GET \/api\/token\?scope=voip +200 +\d+ ms$/);
    assert.match(first, /^GET \/api\/token +200 +\d+ ms$/);

    const dialog = visit.page.getByRole("dialog", { name: "Erase your identity?" });
    await visit.button("Erase …").focus();
    await keyboard.press("Enter");
    await dialog.waitFor();
    await visit.isAccessible();
    assert.equal((await focused())[0], "Keep it", "a hasty Enter does no harm");
    await keyboard.press("Escape");
    await dialog.waitFor({ state: "hidden" });
    assert.equal((await focused())[0], "Erase …");
    assert.equal((await visit.requests()).length, 2);

    await keyboard.press("Enter");
    await keyboard.press("Tab");
    assert.equal((await focused())[0], "Erase it");
    await keyboard.press("Enter");
    const outcome = visit.page.locator("#account-outcome");
    await outcome.getByText("Your identity is erased").waitFor();
    await card.becomes("empty");

    // The broker wants an Entra token from after the erasure; MSAL gets it without a question.
    await card.get();
    await card.becomes("valid");
    assert.notEqual(await card.text(".identity"), identity);
    const [third, ...between] = await visit.requests();
    const erased = between.find((line) => line.startsWith("DELETE"));
    const [refused] = between;
    assert.match(third, /^GET \/api\/token\?scope=voip +200/);
    assert.match(refused, /^GET \/api\/token\?scope=voip +401 +token_revoked$/);
    assert.match(erased, /^DELETE \/api\/user +204/);

    await visit.button("Sign out").first().click();
    await visit.button("Sign in with Microsoft Entra").waitFor();
    assert.equal(visit.page.url(), ADDRESSES.page, "nothing of the sign-out is left in the address");
    await visit.button("Sign in with Microsoft Entra").click();
    await visit.button("Ada").waitFor(); // The session at Entra has ended, too.
  });
});

test("each way is a token of its own, for the same person", async () => {
  await Visit.make({ viewport: PHONE }, async (visit) => {
    await visit.signIn("Ada");
    const cards = [MAPPED, "Entra ID user", "Teams user"].map((name) => visit.card(name));
    for (const card of cards) {
      await card.get();
      await card.becomes("valid");
    }
    const identities = await Promise.all(cards.map((card) => card.text(".identity")));
    assert.equal(new Set(identities).size, 3);
    assert.equal(identities[2], "8:orgid:7d2f6b1e-43c9-4a80-b5d7-0e91f2a6c834");
    const kinds = await Promise.all(cards.map((card) => card.text(".kind")));
    assert.deepEqual(kinds, ["Communication Services user", "Entra ID user", "Teams user"]);
    await visit.isAccessible();

    // Signing out everywhere is about the broker's own tokens. The others are Entra's.
    await visit.button("Sign out everywhere").click();
    await cards[0].becomes("empty");
    await cards[1].becomes("valid");
  });
});

test("who is not assigned reads whom to ask", async () => {
  await Visit.make({ colorScheme: "dark" }, async (visit) => {
    await visit.signIn("Fadi");
    const card = visit.card("Entra ID user");
    await card.get();
    await card.becomes("refused");
    assert.match(await card.element.innerText(), /Its owner has to assign you, a group of yours/);
    assert.match(await card.element.innerText(), /403 not_assigned/);
    await visit.isAccessible();
  });
});

test("a way that the broker has off is no alarm", async () => {
  await Visit.make({ url: ADDRESSES.pageWithoutExchanges }, async (visit) => {
    await visit.signIn("Grace");
    for (const name of ["Entra ID user", "Teams user"]) {
      const card = visit.card(name);
      await card.get();
      await card.becomes("off");
      assert.equal(await card.text(".badge"), "Not enabled");
      assert.match(await card.element.innerText(), /ACS_EXCHANGES/);
      assert.equal(await card.element.locator(".problem.calm").count(), 1);
    }
    await visit.isAccessible();
  });
});

test("on a phone in the dark: signed out everywhere, and patient", async () => {
  await Visit.make({ viewport: PHONE, colorScheme: "dark" }, async (visit) => {
    await visit.button("Sign in").waitFor();
    await visit.isAccessible();
    await visit.signIn("Fadi");
    const card = visit.card(MAPPED);
    await card.get();
    await card.becomes("valid");
    const identity = await card.text(".identity");
    await visit.isAccessible();

    await visit.button("Sign out everywhere").click();
    const outcome = visit.page.locator("#account-outcome");
    await outcome.getByText("This page stays signed in").waitFor();
    assert.equal(await visit.status, await outcome.innerText());
    await card.becomes("empty");
    await visit.isAccessible();

    await card.get();
    await card.element.getByText(/Your identity is being worked on\. Attempt 2 of 5 follows in \d+ s\./).waitFor();
    await visit.isAccessible();
    await card.button("Stop").click();
    await card.becomes("empty");

    await putClockForward(60); // Half a minute of waiting, for the broker.
    await card.get();
    await card.becomes("valid");
    await putClockForward(0);
    assert.equal(await card.text(".identity"), identity);
  });
});

test("the SDK refreshes a token ten minutes before it expires", async () => {
  const prepare = (page) => page.clock.install();
  await Visit.make({ prepare }, async (visit) => {
    await visit.signIn("Grace");
    const card = visit.card(MAPPED);
    await card.get();
    await card.becomes("valid");

    await visit.page.clock.fastForward("20:00");
    await card.element.getByText(/^(40:00|39:5\d)$/).waitFor();
    assert.equal((await visit.requests()).length, 1);

    await visit.page.clock.fastForward("31:00");
    await visit.page.getByText(/the token was refreshed, until/).waitFor();
    assert.equal((await visit.requests()).length, 2);
    await card.becomes("valid");

    // A refresh that fails does not take away a token that is still good.
    await visit.page.route("**/api/token", (route) => route.fulfill({ status: 500, body: "" }));
    await visit.page.clock.fastForward("05:00");
    const panel = card.element.locator(".problem");
    await panel.getByText("The broker's host failed").waitFor();

    // Once it has expired, the reason why there is no newer one stays on the screen.
    await visit.page.clock.fastForward("05:00");
    await card.becomes("expired");
    assert.match(await visit.status, /the token has expired/);
    assert.match(await panel.innerText(), /The broker's host failed/);
    await card.get();
    await card.becomes("expired");
    await visit.page.clock.runFor(2000);
    assert.match(await panel.innerText(), /The broker's host failed/);
    assert.equal(await card.text(".badge"), "Expired");
    await visit.isAccessible();
  });
});

test("a refusal is waited out as long as it says, or until somebody stops it", async () => {
  await Visit.make({}, async (visit) => {
    await visit.signIn("Grace");
    const card = visit.card(MAPPED);
    await fail("acs", { operation: "issue", status: 429, headers: { "Retry-After": "1" }, times: 20 });
    await card.get();
    await card.element.getByText("limiting requests. Attempt 2 of 5 follows in").waitFor();
    await card.button("Stop").click();
    await card.becomes("empty");
    assert.equal(await visit.status, "Mapped identity: stopped.");
    await fetch(`${ADDRESSES.acs}/_local/faults`, { method: "DELETE" });

    await fail("acs", { operation: "issue", status: 429, headers: { "Retry-After": "1" } });
    const began = Date.now();
    await card.get();
    await card.becomes("valid");
    assert.ok(Date.now() - began >= 1000, "no earlier than Retry-After");
    const [last, before] = await visit.requests();
    assert.match(last, /200/);
    assert.match(before, /503 +upstream_throttled/);
  });
});

test("problems say what happened, what to do, and what to quote", async () => {
  for (const colorScheme of ["light", "dark"]) {
    await Visit.make({ colorScheme }, async (visit) => {
      await visit.signIn("Grace");
      const card = visit.card(MAPPED);
      const panel = card.element.locator(".problem");

      await fail("acs", { operation: "issue", status: 401, times: 5 });
      await card.get();
      await card.becomes("refused");
      assert.match(await panel.innerText(), /The broker itself was refused/);
      assert.match(await panel.innerText(), /Tell the operator of the broker, and quote the trace id/);
      assert.match(await panel.innerText(), /502 upstream_auth\s+Trace id to quote\s+[0-9a-f]{32}$/);
      assert.equal(await visit.status, "Mapped identity: The broker itself was refused.");
      await visit.isAccessible();
      await fetch(`${ADDRESSES.acs}/_local/faults`, { method: "DELETE" });

      // What the host in front of the broker answers, and what no answer is.
      const answer = (answered) => visit.page.route("**/api/token", answered, { times: 1 });
      await answer((route) => route.fulfill({ status: 403, contentType: "text/html", body: "<h1>No" }));
      await card.get();
      await panel.getByText("The broker's host refuses requests").waitFor();
      await answer((route) => route.abort());
      await card.get();
      await card.element.getByText("The broker cannot be reached. Attempt 2 of 5 follows").waitFor();
      await card.becomes("valid");
    });
  }
});

test("a broker that gives no answer is asked again, and then given up", async () => {
  const prepare = (page) => page.clock.install();
  await Visit.make({ prepare }, async (visit) => {
    await visit.signIn("Grace");
    const card = visit.card(MAPPED);
    const panel = card.element.locator(".problem");
    await visit.page.route("**/api/token", (route) => route.abort());

    await card.get();
    for (const attempt of [2, 3, 4, 5]) {
      await card.element.getByText(`Attempt ${attempt} of 5 follows`).waitFor();
      await visit.page.clock.fastForward("00:12");
    }
    await panel.getByText("The broker cannot be reached").waitFor();
    assert.match(await panel.innerText(), /host may be restarting, or limiting requests/);
    assert.equal((await visit.requests()).length, 5);
    await visit.isAccessible();

    await visit.page.unroute("**/api/token");
    await panel.getByRole("button", { name: "Try again" }).press("Enter");
    await card.becomes("valid");
    const focused = () => visit.page.evaluate(() => document.activeElement.textContent);
    assert.equal(await focused(), "Refresh now", "the focus has not gone with the panel");

    // Two minutes are more than the page waits by itself.
    const cors = { "Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": "Retry-After" };
    const limited = { status: 429, headers: { ...cors, "Retry-After": "120" } };
    const answers = [limited, { status: 204, headers: cors }]; // Not the broker's: Grace is needed below.
    await visit.page.route("**/api/token/revoke", (route) => route.fulfill(answers.shift()));
    await visit.button("Sign out everywhere").click();
    await visit.page.locator("#account-outcome").getByRole("button", { name: "Try again" }).press("Enter");
    await visit.page.locator("#account-outcome").getByText("are revoked").waitFor();
    assert.equal(await focused(), "Sign out everywhere");
  });
});

test("Entra wants a second factor, and the page goes on where it was", async () => {
  const policies = `${ADDRESSES.entra}/_local/policies`;
  await Visit.make({}, async (visit) => {
    await visit.signIn("Grace");
    const resource = "https://communication.azure.com/clients";
    const policy = { resource, user: "grace@contoso.example" };
    const { status } = await fetch(policies, { method: "POST", body: JSON.stringify(policy) });
    assert.equal(status, 200);
    const card = visit.card("Entra ID user");

    await card.get();
    await card.becomes("refused");
    assert.match(await card.element.innerText(), /Entra wants you to sign in again/);
    assert.match((await visit.requests())[0], /403 +insufficient_claims$/);
    await visit.isAccessible();

    const asked = visit.page.waitForRequest((request) => /\/authorize\?/.test(request.url()));
    await card.button("Sign in again").click();
    assert.match(new URL((await asked).url()).searchParams.get("claims"), /"capolids":/);
    await visit.choose("Grace");
    await visit.card("Entra ID user").becomes("valid");
  });
  await fetch(policies, { method: "DELETE" });
});

test("the broker's policy wants another sign-in, and the page hands its claims to Entra", async () => {
  await Visit.make({ url: ADDRESSES.pageWithPolicy }, async (visit) => {
    await visit.signIn("Ada");
    const card = visit.card(MAPPED);

    await card.get();
    await card.becomes("refused");
    assert.match(await card.element.innerText(), /Entra wants you to sign in again/);
    assert.match((await visit.requests())[0], /401 +insufficient_claims$/);

    const asked = visit.page.waitForRequest((request) => /\/authorize\?/.test(request.url()));
    await card.button("Sign in again").click();
    assert.match(new URL((await asked).url()).searchParams.get("claims"), /"acrs":/);
    await visit.choose("Ada");
    await visit.card(MAPPED).becomes("valid");
  });
});

test("with the refresh token gone, Entra is asked in a hidden frame, then the person", async () => {
  await Visit.make({}, async (visit) => {
    await visit.signIn("Grace");
    const card = visit.card(MAPPED);
    await card.get();
    await card.becomes("valid");
    await visit.button("Erase …").click();
    await visit.button("Erase it").click();
    await card.becomes("empty");
    const refusal = { error: "invalid_grant", error_description: "AADSTS700084: expired." };
    await fail("entra", { operation: "token", status: 400, body: JSON.stringify(refusal) });
    const framed = visit.page.waitForResponse(
      (response) => response.url().endsWith("/redirect.html") && response.frame().parentFrame() !== null,
    );

    await card.get();
    await framed;
    // Browsers send the session's cookie to nobody in a frame of another site.
    await card.element.getByText("Entra wants you to sign in again").waitFor();
    await card.button("Sign in again").click();
    await visit.card(MAPPED).becomes("valid");
  });
});

test("a local Entra that the browser does not trust is named", async () => {
  const prepare = (page) => page.route("**/.well-known/openid-configuration", (route) => route.abort());
  await Visit.make({ prepare }, async (visit) => {
    await visit.button("Sign in with Microsoft Entra").click();
    await visit.page.getByText("this browser does not trust its certificate").waitFor();
    const link = visit.page.getByRole("link", { name: /accept its certificate/ });
    assert.ok((await link.getAttribute("href")).startsWith(`${ADDRESSES.entra}/`));
    await visit.isAccessible();
  });
});

test("a page without config.json says so", async () => {
  const prepare = (page) => page.route("**/config.json", (route) => route.fulfill({ status: 404 }));
  await Visit.make({ prepare }, async (visit) => {
    await visit.page.getByText("This page is not configured").waitFor();
    await visit.isAccessible();
  });
});
