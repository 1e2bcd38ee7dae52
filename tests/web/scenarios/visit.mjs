// A visit to the page: a browser of its own, and what every visit must keep to.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { withPage } from "../../js/browser.mjs";

export const ADDRESSES = JSON.parse(process.env.ADDRESSES);

const AXE = await readFile(
  new URL("../../../samples/web/node_modules/axe-core/axe.min.js", import.meta.url),
  "utf-8",
);

// What Chromium prints by itself: about answers of 400 and above, and about MSAL's hidden frames.
const CHROMIUMS_OWN = /^Failed to load resource|^An iframe which has both allow-scripts/;

export const DESKTOP = { width: 1280, height: 900 };
export const PHONE = { width: 360, height: 740 };

// Makes an emulator answer the next request of an operation with a fault.
export async function fail(service, fault) {
  const answer = await fetch(`${ADDRESSES[service]}/_local/faults`, {
    method: "POST",
    body: JSON.stringify(fault),
  });
  assert.equal(answer.status, 204);
}

export async function putClockForward(seconds) {
  await fetch(ADDRESSES.clock, { method: "POST", body: String(seconds) });
}

export class Visit {
  constructor(page) {
    this.page = page;
    this.printed = [];
    this.secrets = [];
  }

  // Opens the page in a new browser, calls `use` with the visit, and then checks what the page has
  // printed: nothing against its policy, and no token.
  static async make({ url = ADDRESSES.page, viewport = DESKTOP, colorScheme = "light", prepare = () => {} }, use) {
    await withPage(ADDRESSES.chromium, async (page) => {
      const visit = new Visit(page);
      page.on("pageerror", (error) => visit.printed.push(`uncaught: ${error}`));
      page.on("console", (message) => visit.printed.push(message.text()));
      page.on("response", (response) => visit.#keepSecrets(response));
      await page.setViewportSize(viewport);
      await page.emulateMedia({ colorScheme });
      await prepare(page);
      await page.goto(url);
      await use(visit);
      visit.#hasPrintedNothing();
    });
  }

  async #keepSecrets(response) {
    const headers = await response.request().allHeaders();
    if (headers.authorization !== undefined) this.secrets.push(headers.authorization.slice(7));
    if (!/\/api\/token/.test(response.url()) || response.status() !== 200) return;
    const { token } = await response.json().catch(() => ({}));
    if (token !== undefined) this.secrets.push(token);
  }

  #hasPrintedNothing() {
    assert.deepEqual(this.printed.filter((text) => !CHROMIUMS_OWN.test(text)), []);
  }

  async #showsNoToken() {
    const seen = await this.page.evaluate(() => document.documentElement.outerHTML);
    // The part after the header is what nobody may read off a screen.
    for (const secret of this.secrets) assert.ok(!seen.includes(secret.slice(-40)), "a token is shown");
  }

  async signIn(person) {
    await this.button("Sign in with Microsoft Entra").click();
    await this.choose(person);
  }

  async choose(person) {
    await this.button(person).click();
    await this.page.getByRole("heading", { name: "Your tokens" }).waitFor();
  }

  button(name) {
    return this.page.getByRole("button", { name });
  }

  get status() {
    return this.page.getByRole("status").textContent();
  }

  // The newest request comes first.
  async requests() {
    const lines = await this.page.locator("#requests li").allTextContents();
    return lines.map((line) => line.replace(/^\S+ +/, "").trim());
  }

  card(name) {
    return new Card(this.page.getByRole("article", { name }));
  }

  // Fails if axe finds anything, if anything is wider than the screen, if a finger cannot hit it, or
  // if there is a token on the screen.
  async isAccessible() {
    await this.#showsNoToken();
    await this.page.evaluate(AXE);
    const found = await this.page.evaluate(() => axe.run());
    const said = found.violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html)}`);
    assert.deepEqual(said, []);
    const [overflow, small] = await this.page.evaluate(() => [
      document.documentElement.scrollWidth - innerWidth,
      [...document.querySelectorAll("button, select")]
        .filter((each) => each.checkVisibility() && each.offsetHeight < 44)
        .map((each) => each.textContent),
    ]);
    assert.ok(overflow <= 0, `${overflow} pixels too wide`);
    assert.deepEqual(small, []);
  }
}

class Card {
  constructor(element) {
    this.element = element;
  }

  button(name) {
    return this.element.getByRole("button", { name });
  }

  async get() {
    await this.button(/Get a token|Refresh now/).click();
  }

  async becomes(...states) {
    const any = states.map((state) => `[data-state="${state}"]`).join();
    const reached = this.element.and(this.element.page().locator(any));
    await reached.waitFor().catch(async () => {
      assert.fail(`not ${states}, but: ${await this.element.innerText()}`);
    });
  }

  text(selector) {
    return this.element.locator(selector).textContent();
  }
}
