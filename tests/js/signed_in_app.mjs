// An app with @azure/msal-node and @azure/communication-common: signs in, and does as it is told.
//
//   node signed_in_app.mjs '{"clientId": "...", "authority": "...", "broker": "...", "scopes": [...]}'
//
// It prints the URL of the sign-in first. Then each line of its input is a request such as
// {"do": "refresh"}, and is answered with a line.

import { createInterface } from "node:readline";
import { AzureCommunicationTokenCredential } from "@azure/communication-common";
import { PublicClientApplication } from "@azure/msal-node";
import { brokerTokens } from "../../samples/javascript/acs-token.mjs";

const { clientId, authority, broker, scopes } = JSON.parse(process.argv[2]);
const say = (answer) => console.log(JSON.stringify(answer));

// MSAL takes authorities other than Microsoft's if they are named.
const knownAuthorities = [new URL(authority).host];
const app = new PublicClientApplication({ auth: { clientId, authority, knownAuthorities } });
const openBrowser = async (url) => say({ url });
const { account } = await app.acquireTokenInteractive({ scopes, openBrowser });
say({ account: account.homeAccountId });

const silently = (request) => app.acquireTokenSilent({ scopes, account, ...request });
const tokenRefresher = brokerTokens(broker, async (claims) => (await silently({ claims })).accessToken);

const failures = [];
process.on("unhandledRejection", (error) => failures.push(error.message));

async function tokenOf(credential) {
  try {
    return await credential.getToken();
  } finally {
    credential.dispose();
  }
}

const requests = {
  // MSAL alone.
  silently: async (request) => {
    const { accessToken, fromCache } = await silently(request);
    return { accessToken, fromCache };
  },
  // The sample's refresher alone.
  refresh: () => tokenRefresher(),
  // The refresher in the SDK's credential, from a token that expires soon to the next one.
  credential: async ({ token }) => {
    const credential = new AzureCommunicationTokenCredential({
      token,
      tokenRefresher,
      refreshProactively: true,
    });
    const deadline = Date.now() + 5000;
    let now = await credential.getToken();
    while (now.token === token && !failures.length && Date.now() < deadline) {
      await new Promise((resolve) => setTimeout(resolve, 50));
      now = await credential.getToken();
    }
    credential.dispose();
    return { ...now, failures };
  },
  // Without the broker: the SDK exchanges the Entra token with ACS itself.
  directly: async ({ resourceEndpoint, acsScopes }) => {
    const getToken = async (wanted) => {
      const { accessToken, expiresOn } = await silently({ scopes: wanted });
      return { token: accessToken, expiresOnTimestamp: expiresOn.getTime() };
    };
    const tokenCredential = { getToken };
    return tokenOf(
      new AzureCommunicationTokenCredential({ resourceEndpoint, tokenCredential, scopes: acsScopes }),
    );
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { do: name, ...request } = JSON.parse(line);
  await requests[name](request).then(say, (error) => say({ error: error.message, code: error.code }));
}
