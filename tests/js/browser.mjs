// Headless Chromium with an empty profile, which makes no requests of its own.

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";

// Calls `use` with a page of a new browser, and returns its result.
export async function withPage(executablePath, use) {
  const profile = await mkdtemp(join(tmpdir(), "chromium-"));
  const browser = await chromium.launchPersistentContext(profile, {
    executablePath,
    headless: true,
    ignoreHTTPSErrors: true,
    args: [
      "--no-sandbox",
      "--disable-gpu",
      "--disable-quic",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
      "--no-first-run",
    ],
  });
  try {
    const page = browser.pages()[0];
    page.setDefaultTimeout(20_000);
    return await use(page);
  } finally {
    await browser.close();
    await rm(profile, { recursive: true, force: true });
  }
}
