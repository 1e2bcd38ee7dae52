import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { request } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";

const SERVE = join(import.meta.dirname, "..", "serve.mjs");
let folder, config, server, url;

before(async () => {
  folder = await mkdtemp(join(tmpdir(), "page-"));
  config = join(folder, "config.json");
  server = spawn(process.execPath, [SERVE, "--config", config, "--root", folder, "--port", "0"]);
  const [line] = await once(server.stdout, "data");
  url = new URL(String(line).split(" ")[1]);
});

after(async () => {
  server.kill();
  await rm(folder, { recursive: true });
});

async function get(path) {
  const asked = request({ host: "127.0.0.1", port: url.port, path }).end();
  const [response] = await once(asked, "response");
  let text = "";
  for await (const chunk of response.setEncoding("utf-8")) text += chunk;
  return { status: response.statusCode, policy: response.headers["content-security-policy"], text };
}

for (const [what, text] of [
  ["is missing", null],
  ["is not JSON", "{"],
  ["lacks an address", '{"authority": "https://login.example/common"}'],
]) {
  test(`a configuration that ${what} is told, and does not end the server`, async () => {
    if (text !== null) await writeFile(config, text);
    const answer = await get("/");
    assert.equal(answer.status, 500);
    assert.match(answer.text, /config\.example\.json/);
  });
}

test("a request that names no path does not end the server", async () => {
  await writeFile(config, '{"authority": "https://login.example/t", "brokerUrl": "https://b.example/api"}');
  await writeFile(join(folder, "index.html"), "<!doctype html>");
  assert.equal((await get("//")).status, 400);
  assert.equal((await get("/elsewhere")).status, 404);
  const page = await get("/");
  assert.equal(page.status, 200);
  assert.match(page.policy, /connect-src 'self' https:\/\/login\.example https:\/\/b\.example;/);
});
