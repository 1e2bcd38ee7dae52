// The credential that Microsoft's chat and calling clients take, fed by the broker.

import { AzureCommunicationTokenCredential } from "@azure/communication-common";
import { readToken, type IssuedToken } from "./answers.ts";
import type { Broker, Watcher } from "./broker.ts";

interface CredentialOptions {
  readonly broker: Broker;
  readonly path: string;
  readonly watcher: Watcher;
  readonly signal: AbortSignal; // Ends all waiting, once nobody wants the token any more.
  readonly issued: (token: IssuedToken) => void;
  readonly failed: (error: unknown) => void;
}

// Returns a credential that holds a token already, and gets another ten minutes before it expires.
export async function openCredential(
  options: CredentialOptions,
): Promise<AzureCommunicationTokenCredential> {
  const refresh = async (): Promise<{ token: string; expiresOnTimestamp: number }> => {
    const { broker, path, watcher, signal } = options;
    const { body } = await broker.call({ method: "GET", path, signal, watcher });
    const issued = readToken(body);
    options.issued(issued);
    // With an expiry beside it, the SDK does not read the token either.
    return { token: issued.token, expiresOnTimestamp: issued.expiresOn };
  };
  return new AzureCommunicationTokenCredential({
    token: await refresh(),
    refreshProactively: true,
    tokenRefresher: async () => {
      try {
        return await refresh();
      } catch (error) {
        // The SDK's timer does not start again after a failure, and nobody awaits what it throws.
        options.failed(error);
        throw error;
      }
    },
  });
}
