// Exchanges an Entra token with Microsoft's own client for calling apps, and prints the answer.
// Usage: node communication_common.mjs '{"url": "https://…", "token": "…", "scopes": ["…"]}'

import { AzureCommunicationTokenCredential } from "@azure/communication-common";

const { url, token, scopes } = JSON.parse(process.argv[2]);
const credential = new AzureCommunicationTokenCredential({
  resourceEndpoint: url,
  tokenCredential: { getToken: async () => ({ token, expiresOnTimestamp: Date.now() + 3600_000 }) },
  scopes,
});
try {
  const issued = await credential.getToken();
  console.log(JSON.stringify({ token: issued.token, expires: issued.expiresOnTimestamp / 1000 }));
} catch (error) {
  console.log(JSON.stringify({ error: error.message }));
}
credential.dispose();
