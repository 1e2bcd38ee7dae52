// Signs in with Entra, gets an ACS access token from the broker, and keeps it fresh.
//
//   BROKER_URL=https://... BROKER_CLIENT_ID=... CLIENT_ID=... node acs-token.mjs

import { setTimeout as sleep } from "node:timers/promises";
import { pathToFileURL } from "node:url";
import { AzureCommunicationTokenCredential } from "@azure/communication-common";
import { InteractionRequiredAuthError, PublicClientApplication } from "@azure/msal-node";

// No answer may pass, too, and a 502 only from the host: the broker's own would stay the same.
const TRY_AGAIN = [undefined, 429, 502, 503, 504];
const PATIENCE_MS = 45_000;
const STILL_GOOD_MS = 60_000;

// The broker's refusal; the message is for people.
export class BrokerError extends Error {
  constructor(status, problem, retryAfter) {
    const { code, detail = "The service cannot be reached.", traceId, claims } = problem;
    const answer = [status, code].filter(Boolean).join(" ") || "no answer";
    super(`${detail} (${answer}${traceId ? `, trace id ${traceId}` : ""})`);
    this.code = code;
    this.claims = claims;
    this.mayPass = TRY_AGAIN.includes(status) && !(status === 502 && code);
    this.retryAfterMs = Number(retryAfter) * 1000 || 0;
  }
}

async function ask(url, entraToken, abortSignal) {
  const signals = [AbortSignal.timeout(10_000), abortSignal].filter(Boolean);
  const headers = { Authorization: `Bearer ${entraToken}` };
  const answer = await fetch(url, { headers, signal: AbortSignal.any(signals) }).catch((error) => {
    if (abortSignal?.aborted) throw error;
    throw new BrokerError(undefined, {});
  });
  // The host's own errors are not JSON.
  const isJson = answer.headers.get("Content-Type")?.includes("json");
  const body = isJson ? await answer.json() : {};
  if (!answer.ok) throw new BrokerError(answer.status, body, answer.headers.get("Retry-After"));
  return { token: body.token, expiresOnTimestamp: Date.parse(body.expiresOn) };
}

// Returns a `tokenRefresher`. `getEntraToken` gets a token for the broker; with claims, a fresh one.
export function brokerTokens(brokerUrl, getEntraToken) {
  let last;
  return async (abortSignal) => {
    let entraToken = await getEntraToken();
    const giveUp = Date.now() + PATIENCE_MS;
    for (let pause = 250, challenged = false; ; ) {
      try {
        return (last = await ask(`${brokerUrl}/api/token`, entraToken, abortSignal));
      } catch (error) {
        if (error.claims && !challenged) {
          // Without the claims, MSAL would return the same token from its cache.
          entraToken = await getEntraToken(error.claims);
          [last, challenged] = [undefined, true];
          continue;
        }
        if (!error.mayPass) throw error;
        // The SDK asks again after half of the remaining time.
        if (last?.expiresOnTimestamp - Date.now() > STILL_GOOD_MS) return last;
        pause = Math.max(pause * 2, error.retryAfterMs) * (1 + Math.random() / 2);
        if (Date.now() + pause > giveUp) throw error;
        await sleep(pause, undefined, { signal: abortSignal });
      }
    }
  };
}

// Returns a function that gets Entra tokens, and asks for a sign-in only where one is needed.
export function signIn(auth, scopes) {
  // The capability tells Entra and APIs that this app can handle claims challenges.
  const app = new PublicClientApplication({ auth: { clientCapabilities: ["CP1"], ...auth } });
  const openBrowser = async (url) => console.log(`To sign in, open ${url}`);
  return async (claims) => {
    const [account] = await app.getAllAccounts();
    const silently = async () => app.acquireTokenSilent({ scopes, account, claims });
    const interactively = () => app.acquireTokenInteractive({ scopes, claims, openBrowser });
    const result = await (account ? silently() : interactively()).catch((error) => {
      if (account && error instanceof InteractionRequiredAuthError) return interactively();
      throw error;
    });
    return result.accessToken;
  };
}

async function main({ BROKER_URL, BROKER_CLIENT_ID, CLIENT_ID, AUTHORITY }) {
  if (!BROKER_URL || !BROKER_CLIENT_ID || !CLIENT_ID) {
    throw new Error("Set BROKER_URL, BROKER_CLIENT_ID and CLIENT_ID.");
  }
  const auth = { clientId: CLIENT_ID, authority: AUTHORITY ?? "https://login.microsoftonline.com/organizations" };
  if (AUTHORITY) auth.knownAuthorities = [new URL(AUTHORITY).host]; // Of the local stack, for example.
  const tokenRefresher = brokerTokens(BROKER_URL, signIn(auth, [`api://${BROKER_CLIENT_ID}/access_as_user`]));
  // A refresh in the background that fails would end the process. The next call reports it.
  process.on("unhandledRejection", (error) => console.error(`No new token: ${error.message}`));
  const credential = new AzureCommunicationTokenCredential({
    tokenRefresher,
    token: await tokenRefresher(),
    refreshProactively: true,
  });
  const { expiresOnTimestamp } = await credential.getToken(); // Or: new ChatClient(endpoint, credential)
  console.log(`An ACS token, good until ${new Date(expiresOnTimestamp).toLocaleTimeString()}.`);
  credential.dispose();
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  await main(process.env).catch((error) => {
    console.error(`No token: ${error.message}`);
    process.exitCode = 1;
  });
}
