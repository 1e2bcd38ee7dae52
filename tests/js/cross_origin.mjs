// Calls a URL from a page of another origin in Chromium, and prints what the page may read as JSON.
//
//   node cross_origin.mjs CHROMIUM ORIGIN URL TOKEN

import { withPage } from "./browser.mjs";

const [executablePath, origin, url, token] = process.argv.slice(2);

const read = await withPage(executablePath, async (page) => {
  // Chromium treats a page without an address as one from the internet.
  await page.context().grantPermissions(["local-network-access"]);
  await page.route(`${origin}/**`, (route) => route.fulfill({ contentType: "text/html", body: "" }));
  await page.goto(`${origin}/`);
  return await page.evaluate(
    async ([url, token]) => {
      const answer = await fetch(url, { headers: { Authorization: `Bearer ${token}` } });
      return { status: answer.status, headers: Object.fromEntries(answer.headers) };
    },
    [url, token],
  );
});
console.log(JSON.stringify(read));
