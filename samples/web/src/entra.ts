// Signs in with MSAL, by redirect: it works on phones and where pop-ups are blocked.

import {
  AuthError,
  BrowserCacheLocation,
  InteractionRequiredAuthError,
  PublicClientApplication,
  type AccountInfo,
} from "@azure/msal-browser";
import { isLoopback, type Config } from "./config.ts";
import { ProblemError } from "./problems.ts";

const UNREACHABLE = new Set([
  "endpoints_resolution_error",
  "get_request_failed",
  "network_error",
  "no_network_connectivity",
  "openid_config_error",
  "post_request_failed",
]);

export class Entra {
  private constructor(
    private readonly app: PublicClientApplication,
    private readonly config: Config,
    // What the page was doing when it sent the person to Entra, if that is where they come from.
    readonly resumed: string | undefined,
  ) {}

  // Finishes a sign-in that is under way. Throws a ProblemError if that failed.
  static async open(config: Config): Promise<Entra> {
    const page = new URL("./", location.href).href;
    const app = new PublicClientApplication({
      auth: {
        clientId: config.clientId,
        authority: config.authority,
        // MSAL asks Microsoft about hosts that it does not know. It would not know a local one.
        knownAuthorities: isLoopback(config.authority) ? [new URL(config.authority).host] : [],
        redirectUri: new URL("redirect.html", page).href,
        postLogoutRedirectUri: page,
        // Tells Entra and APIs that this app can handle claims challenges.
        clientCapabilities: ["CP1"],
      },
      // Gone with the tab, and not shared with others.
      cache: { cacheLocation: BrowserCacheLocation.SessionStorage },
    });
    try {
      await app.initialize();
      const back = await app.handleRedirectPromise();
      if (back !== null) app.setActiveAccount(back.account);
      // Entra adds a state to the address to which it sends people after signing out.
      if (location.search !== "") history.replaceState(null, "", page);
      return new Entra(app, config, back?.state);
    } catch (error) {
      throw translated(error, config);
    }
  }

  private get scopes(): string[] {
    return [this.config.brokerScope];
  }

  get account(): AccountInfo | undefined {
    return this.app.getActiveAccount() ?? this.app.getAllAccounts()[0];
  }

  // Returns a token for the broker without asking the person. Throws a ProblemError.
  async token(claims?: string): Promise<string> {
    const { account, scopes } = this;
    if (account === undefined) throw new ProblemError({ code: "sign_in_needed" });
    try {
      const request = { account, scopes, ...(claims === undefined ? {} : { claims }) };
      return (await this.app.acquireTokenSilent(request)).accessToken;
    } catch (error) {
      throw translated(error, this.config, claims);
    }
  }

  // Leaves this page for Entra. `resume` is what to go on with after coming back.
  async signIn(options: { resume?: string; claims?: string; choose?: boolean } = {}): Promise<void> {
    const { account, scopes } = this;
    try {
      await this.app.acquireTokenRedirect({
        scopes,
        ...(options.resume === undefined ? {} : { state: options.resume }),
        ...(options.claims === undefined ? {} : { claims: options.claims }),
        ...(options.choose || account === undefined ? { prompt: "select_account" } : { account }),
      });
    } catch (error) {
      throw translated(error, this.config);
    }
  }

  // Ends the session at Entra, too.
  async signOut(): Promise<void> {
    const { account } = this;
    await this.app.logoutRedirect(account === undefined ? {} : { account });
  }
}

function translated(error: unknown, config: Config, claims?: string): ProblemError {
  if (error instanceof InteractionRequiredAuthError) {
    return new ProblemError({ code: "sign_in_needed", claims: error.claims || claims });
  }
  const code = error instanceof AuthError ? error.errorCode : "unknown";
  if (UNREACHABLE.has(code)) {
    // A local Entra is there, as a rule, but with a certificate that the browser does not trust.
    const metadata = `${config.authority}/v2.0/.well-known/openid-configuration`;
    return isLoopback(config.authority)
      ? new ProblemError({ code: "local_entra_unreachable", link: metadata })
      : new ProblemError({ code: "entra_unreachable" });
  }
  // Its message may hold what Entra answered: the code is enough to find the cause.
  return new ProblemError({ code: "sign_in_failed", detail: `MSAL reports ${code}.` });
}
