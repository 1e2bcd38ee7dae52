// Turns refusals into something a person can read: what happened, and what to do next.

import { claimsOf } from "./challenge.ts";
import { retryAfterSeconds } from "./retry.ts";

// A refusal, by the broker, by the host in front of it, by Entra or by the network.
export interface Problem {
  readonly code: string;
  readonly status?: number | undefined;
  readonly title?: string | undefined;
  readonly detail?: string | undefined;
  readonly traceId?: string | undefined;
  readonly claims?: string | undefined; // What to ask Entra for, as JSON text.
  readonly retryAfter?: number | undefined; // Seconds.
  readonly link?: string | undefined; // Where the person can do something about it.
}

export class ProblemError extends Error {
  constructor(readonly problem: Problem) {
    super(problem.code); // Nothing else, since messages end up in consoles.
  }
}

export interface Advice {
  readonly title: string;
  readonly next: string;
  // What the page offers to do about it.
  readonly action?: "sign-in" | "switch-account" | "repeat";
  // Nothing is wrong: the broker simply does not offer this.
  readonly calm?: boolean;
}

// Reads an answer that is not a success. The host in front of the broker has answers of its own:
// without a body when it limits requests, in plain text or HTML while the app starts.
export function readProblem(status: number, headers: Headers, body: string, now: number): Problem {
  const type = headers.get("Content-Type")?.split(";")[0]?.trim().toLowerCase();
  const document = type === "application/problem+json" ? parseObject(body) : undefined;
  const text = (name: string): string | undefined => {
    const value = document?.[name];
    return typeof value === "string" && value !== "" ? value : undefined;
  };
  return {
    code: text("code") ?? `http_${status}`,
    status,
    title: text("title"),
    detail: text("detail"),
    traceId: text("traceId"),
    claims: claimsOf(document, headers.get("WWW-Authenticate")),
    retryAfter: retryAfterSeconds(headers.get("Retry-After"), now),
  };
}

function parseObject(body: string): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(body);
    return typeof value === "object" && value !== null ? (value as Record<string, unknown>) : undefined;
  } catch {
    return undefined;
  }
}

const TELL_OPERATOR = "Tell the operator of the broker, and quote the trace id.";
const LATER = "This usually passes within a minute. Try again then.";

const signInAgain = (title: string, next: string): Advice => ({ title, next, action: "sign-in" });
const repeat = (title: string, next = LATER): Advice => ({ title, next, action: "repeat" });
const tell = (title: string, next = TELL_OPERATOR): Advice => ({ title, next });

const ADVICE: Readonly<Record<string, Advice>> = {
  // The broker's own codes.
  invalid_request: tell(
    "The broker does not understand this page",
    `The page and the broker may be of different versions. ${TELL_OPERATOR}`,
  ),
  missing_token: signInAgain("You are not signed in", "Sign in again."),
  invalid_token: signInAgain(
    "Your sign-in was not accepted",
    "Sign in again. If that does not help, the scope in config.json may belong to another broker.",
  ),
  token_revoked: signInAgain(
    "This sign-in has ended",
    "You signed out everywhere, or your identity was erased. Sign in again to go on.",
  ),
  insufficient_scope: tell(
    "This page is not allowed to call the broker",
    "An administrator has to grant the page's registration the broker's delegated scope, the one in config.json.",
  ),
  tenant_not_allowed: {
    title: "Your organisation is not served",
    next: "Sign in with an account of an organisation that is, or ask the operator to add yours.",
    action: "switch-account",
  },
  client_not_allowed: tell(
    "This page's registration is not on the broker's list",
    "Ask the operator to add the client id in config.json to ENTRA_ALLOWED_CLIENT_IDS.",
  ),
  scope_not_allowed: tell(
    "The broker does not grant these scopes",
    "Choose fewer scopes, or ask the operator to add them to ACS_TOKEN_SCOPES.",
  ),
  admin_required: tell("Only administrators may do this", "Ask an administrator of your organisation."),
  consent_required: tell(
    "Your organisation has not consented yet",
    "An administrator of your organisation has to consent once, for everybody. The operator of the broker has the link.",
  ),
  not_permitted: tell(
    "The broker's policy does not permit this to you",
    "Ask the operator which of your groups or roles it is for.",
  ),
  insufficient_claims: signInAgain(
    "Entra wants another proof that it is you",
    "Sign in again. Entra then asks for what is missing, such as a second factor.",
  ),
  not_assigned: tell(
    "You have no access to this Communication Services resource",
    "Its owner has to assign you, a group of yours or your organisation. Ask the operator.",
  ),
  not_enabled: {
    title: "Not enabled at this broker",
    next: "The operator can turn it on with the setting ACS_EXCHANGES.",
    calm: true,
  },
  user_not_found: tell("There is no identity yet", "Get a token: the first one creates the identity."),
  conflict: tell("Something else is stored already"),
  method_not_allowed: tell("The broker does not understand this page"),
  payload_too_large: tell("The broker does not understand this page"),
  unsupported_media_type: tell("The broker does not understand this page"),
  rate_limited: repeat("Too many requests", "Wait a little, then try again."),
  internal_error: tell("Something went wrong in the broker"),
  upstream_auth: tell("The broker itself was refused"),
  upstream_bad_response: tell("The broker got an answer that it cannot use"),
  identity_gone: tell(
    "Communication Services no longer has your identity",
    `An administrator can give you a new one. ${TELL_OPERATOR}`,
  ),
  busy: repeat(
    "Your identity is being worked on",
    "This happens for half a minute after signing out everywhere, or when many people sign in.",
  ),
  keys_unavailable: repeat("The broker cannot check sign-ins right now"),
  storage_unavailable: repeat("The broker cannot look up your identity right now"),
  upstream_unavailable: repeat("Communication Services or Entra cannot be reached"),
  upstream_throttled: repeat("Communication Services or Entra is limiting requests"),
  upstream_timeout: repeat("Communication Services took too long"),
  misconfigured: tell(
    "The broker is not set up correctly",
    "Tell the operator: the broker's log names every setting that is wrong.",
  ),

  // Answers of the host, which are not problem documents.
  http_403: tell(
    "The broker's host refuses requests",
    "The app may be stopped, or closed to this network. Ask the operator.",
  ),
  http_404: tell(
    "The broker has no such address",
    "Check brokerUrl in config.json. An older broker may not have this feature.",
  ),
  http_429: repeat("The broker's host is limiting requests", "Wait a little, then try again."),
  http_500: tell("The broker's host failed", "Tell the operator when it happened."),
  http_502: repeat("The broker's host cannot reach it"),
  http_503: repeat("The broker is starting, or not running", "It starts within seconds. Try again then."),
  http_504: repeat("The broker did not answer in time"),

  // What this page found itself.
  broker_unreachable: repeat(
    "The broker cannot be reached",
    "Its host may be restarting, or limiting requests. If it stays so, check your connection and brokerUrl in config.json, and that the broker allows this page's origin (CORS).",
  ),
  unusable_answer: tell("The broker's answer cannot be used", "Check brokerUrl in config.json."),
  sign_in_needed: signInAgain("Entra wants you to sign in again", "You come back to this page afterwards."),
  sign_in_failed: signInAgain(
    "The sign-in did not succeed",
    "Try again. If it keeps failing, give the code to an administrator.",
  ),
  entra_unreachable: repeat("Entra cannot be reached", "Check your connection, then try again."),
  local_entra_unreachable: repeat(
    "The local Entra cannot be reached",
    "As a rule, this browser does not trust its certificate, which is new in each run. Accept it, then try again.",
  ),
  no_configuration: tell(
    "This page is not configured",
    "Put a config.json beside it; README.md in samples/web says how.",
  ),
  unforeseen: tell("Something went wrong in this page", "Reload it. If it happens again, report it."),
};

// Returns whether a token from before is worthless, too, as after signing out everywhere. Where the
// broker or its host has failed, or Entra wants the person again, it is as good as before.
export function endsToken({ code, status, claims }: Problem): boolean {
  if (status === undefined) return claims !== undefined; // Entra wants a person, for a challenge.
  return [401, 403, 404].includes(status) && code !== `http_${status}`;
}

// Returns details that the advice does not have: the broker's own text says the same in other words.
export function detailOf(problem: Problem): string | undefined {
  const isToldAlready = problem.code in ADVICE && problem.traceId !== undefined;
  return isToldAlready ? undefined : problem.detail;
}

// Returns what to tell the person about a problem.
export function adviceFor(problem: Problem): Advice {
  const known = ADVICE[problem.code];
  if (known !== undefined) return known;
  const title = problem.title ?? `The broker answered with ${problem.status ?? "an error"}`;
  return { title, next: problem.traceId === undefined ? "Tell the operator." : TELL_OPERATOR };
}
