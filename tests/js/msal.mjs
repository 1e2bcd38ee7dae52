// Signs in with @azure/msal-browser in headless Chromium, and prints what the app got as JSON.
//
//   node msal.mjs CHROMIUM '{"auth": {...}, "scopes": [...], "person": "Ada", "challenge": "..."}'

import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { withPage } from "./browser.mjs";

const [executablePath, config] = process.argv.slice(2);
const { person, challenge } = JSON.parse(config);
const library = dirname(createRequire(import.meta.url).resolve("@azure/msal-browser"));

const files = {
  "/": ["text/html", await readFile(new URL("msal.html", import.meta.url))],
  "/msal-browser.min.js": ["text/javascript", await readFile(join(library, "msal-browser.min.js"))],
  "/config.json": ["application/json", config],
  "/favicon.ico": ["image/x-icon", ""],
};
const server = createServer((request, response) => {
  const [type, body] = files[new URL(request.url, "http://app").pathname] ?? ["text/plain", "?"];
  response.writeHead(200, { "Content-Type": type }).end(body);
});
await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
const app = `http://127.0.0.1:${server.address().port}/`;

const complaints = [];
await withPage(executablePath, async (page) => {
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("console", (message) => {
    if (message.type() === "error") complaints.push(message.text());
  });

  const signIn = page.getByRole("button", { name: "Sign in" });
  const signOut = page.getByRole("button", { name: "Sign out" });
  const choice = page.getByRole("button", { name: person });

  await page.goto(app);
  await signIn.click();
  await choice.click();
  await page.waitForURL((url) => url.href.startsWith(app));
  const first = await page.evaluate("signedIn()");
  const cached = await page.evaluate("silently({})");
  const refreshed = await page.evaluate("silently({ forceRefresh: true })");
  const challenged = await page.evaluate(`silently({ claims: ${JSON.stringify(challenge)} })`);

  // A session at Entra spares the question, until one signs out.
  await page.goto(app);
  await signIn.click();
  await page.waitForFunction("signedIn()");
  await signOut.click();
  await page.waitForURL((url) => url.href.startsWith(`${app}?signed-out`));
  await signIn.click();
  await choice.waitFor();
  console.log(JSON.stringify({ first, cached, refreshed, challenged, complaints }));
})
  .catch((error) => {
    console.error(error, complaints);
    process.exitCode = 1;
  })
  .finally(() => server.close());
