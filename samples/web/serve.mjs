// Serves the page that `npm run build` has built, with its config.json and a strict policy.
//
//   node serve.mjs [--config config.json] [--root dist] [--port 5173]
//
// Any web server can do this instead, if it sends the same headers.

import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";
import { parseArgs } from "node:util";

const HERE = import.meta.dirname;
const TYPES = {
  ".css": "text/css",
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript",
  ".json": "application/json",
  ".svg": "image/svg+xml",
  ".txt": "text/plain",
};

// Returns the headers of a file. Entra's answer to a silent request arrives in a hidden frame of the
// page, as redirect.html; nothing else may be framed. That file must not get a
// Cross-Origin-Opener-Policy either: MSAL's redirect bridge does not work with one.
function headers(path, { authority, brokerUrl }) {
  const entra = new URL(authority).origin;
  const policy = [
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self'",
    `connect-src 'self' ${entra} ${new URL(brokerUrl).origin}`,
    `frame-src 'self' ${entra}`,
    "base-uri 'none'",
    "form-action 'none'",
    `frame-ancestors ${path === "/redirect.html" ? "'self'" : "'none'"}`,
    "require-trusted-types-for 'script'",
  ];
  return {
    "Content-Security-Policy": policy.join("; "),
    "Content-Type": TYPES[extname(path)] ?? "application/octet-stream",
    "Cache-Control": path.startsWith("/assets/") ? "max-age=31536000, immutable" : "no-cache",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
  };
}

// Returns the configuration, or null if it cannot be used.
function parsed(config) {
  try {
    const settings = JSON.parse(config);
    return [settings.authority, settings.brokerUrl].every((url) => URL.canParse(url)) ? settings : null;
  } catch {
    return null;
  }
}

const { values } = parseArgs({
  options: {
    config: { type: "string", default: join(HERE, "config.json") },
    root: { type: "string", default: join(HERE, "dist") },
    port: { type: "string", default: "5173" },
  },
});
const server = createServer(async (request, response) => {
  if (!URL.canParse(request.url, "http://page")) {
    response.writeHead(400).end("That is not a path.");
    return;
  }
  const { pathname } = new URL(request.url, "http://page");
  const path = pathname === "/" ? "/index.html" : normalize(pathname);
  // Read for each request, so that an edit takes effect when the page is reloaded.
  const config = await readFile(values.config, "utf-8").catch(() => "");
  const settings = parsed(config);
  if (settings === null) {
    response.writeHead(500).end(`Copy config.example.json to ${values.config}, and fill it in.`);
    return;
  }
  try {
    const body = path === "/config.json" ? config : await readFile(join(values.root, path));
    response.writeHead(200, headers(path, settings)).end(body);
  } catch {
    response.writeHead(404, headers("/404.txt", settings)).end("Not found");
  }
});
server.on("error", (error) => {
  console.error(error.message);
  process.exit(1);
});
server.listen(Number(values.port), "127.0.0.1", () => {
  console.log(`ready http://localhost:${server.address().port}/`);
});
