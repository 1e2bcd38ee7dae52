// Creates, uses and deletes an identity with Microsoft's own client, and prints the answers.
// Usage: node communication_identity.mjs '{"url": "…", "key": "…"}' or '{"url": "…", "token": "…"}'

import { CommunicationIdentityClient } from "@azure/communication-identity";

const { url, key, token } = JSON.parse(process.argv[2]);
const client = key
  ? new CommunicationIdentityClient(`endpoint=${url};accesskey=${key}`, {
      allowInsecureConnection: true,
    })
  : new CommunicationIdentityClient(url, {
      getToken: async () => ({ token, expiresOnTimestamp: Date.now() + 3600_000 }),
    });

const user = await client.createUser();
const revoked = await client.getToken(user, ["chat"]);
await client.revokeTokens(user);
const issued = await client.getToken(user, ["voip", "chat"], { tokenExpiresInMinutes: 60 });
const deleted = await client.createUserAndToken(["voip"]);
await client.deleteUser(deleted.user);
const refusal = await client.getToken(deleted.user, ["voip"]).catch((error) => error);

console.log(
  JSON.stringify({
    user: user.communicationUserId,
    revoked: revoked.token,
    issued: issued.token,
    expires: issued.expiresOn.getTime() / 1000,
    deleted: deleted.user.communicationUserId,
    dead: deleted.token,
    refusal: { status: refusal.statusCode, code: refusal.code },
  }),
);
