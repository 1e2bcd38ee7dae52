// Reads the claims challenge of a refusal: what a new Entra token must satisfy.
// https://learn.microsoft.com/entra/identity-platform/claims-challenge

const PARAMETER = /([a-z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,]+))/gi;

// Returns the parameters of a `WWW-Authenticate: Bearer` header (RFC 9110, section 11.2).
export function challengeParameters(header: string): Map<string, string> {
  const found = new Map<string, string>();
  const scheme = /(?:^|,)\s*Bearer\s+/i.exec(header);
  if (scheme === null) return found;
  for (const [, name, quoted, plain] of header.slice(scheme.index + scheme[0].length).matchAll(PARAMETER)) {
    found.set(name!.toLowerCase(), quoted?.replace(/\\(.)/g, "$1") ?? plain ?? "");
  }
  return found;
}

// Returns the claims that MSAL has to ask Entra for, as JSON text: the problem has them as they
// are, the header in base64. Undefined if there is no challenge.
export function claimsOf(problem: unknown, header: string | null): string | undefined {
  const stated = (problem as { claims?: unknown } | null)?.claims;
  if (isJsonObject(stated)) return stated;
  const encoded = challengeParameters(header ?? "").get("claims");
  if (encoded === undefined) return undefined;
  try {
    const bytes = atob(encoded.replaceAll("-", "+").replaceAll("_", "/"));
    const text = new TextDecoder().decode(Uint8Array.from(bytes, (byte) => byte.charCodeAt(0)));
    return isJsonObject(text) ? text : undefined;
  } catch {
    return undefined; // Not base64.
  }
}

function isJsonObject(text: unknown): text is string {
  if (typeof text !== "string") return false;
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === "object" && value !== null && !Array.isArray(value);
  } catch {
    return false;
  }
}
