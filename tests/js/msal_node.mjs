// Signs in with @azure/msal-node, and prints what the app got as JSON.
//
//   node msal_node.mjs '{"clientId": "…", "authority": "…", "scopes": […], "account": "…", "broker": "…"}'

import { CryptoProvider, PublicClientApplication } from "@azure/msal-node";

const { clientId, authority, scopes, account, broker } = JSON.parse(process.argv[2]);
const redirectUri = "http://localhost:8400";
const app = new PublicClientApplication({
  auth: { clientId, authority, knownAuthorities: [new URL(authority).host] },
});

// What a browser would do: open the page, choose an account, come back with a code.
const { verifier, challenge } = await new CryptoProvider().generatePkceCodes();
const page = await app.getAuthCodeUrl({
  scopes,
  redirectUri,
  codeChallenge: challenge,
  codeChallengeMethod: "S256",
});
const chosen = await fetch(page, {
  method: "POST",
  body: new URLSearchParams({ account }),
  redirect: "manual",
});
const code = new URL(chosen.headers.get("location")).searchParams.get("code");

const first = await app.acquireTokenByCode({ scopes, redirectUri, code, codeVerifier: verifier });
const cached = await app.acquireTokenSilent({ scopes, account: first.account });
const answer = await fetch(broker, {
  headers: { Authorization: `Bearer ${first.accessToken}` },
});

console.log(
  JSON.stringify({
    account: first.account.homeAccountId,
    fromCache: cached.fromCache,
    status: answer.status,
    body: await answer.json(),
  }),
);
