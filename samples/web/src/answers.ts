// Reads the broker's answers.

import { ProblemError } from "./problems.ts";

// A token, and what the answer says about it. The token itself is opaque: its format is not part of
// the contract, and the page never shows it.
export interface IssuedToken {
  readonly token: string;
  readonly expiresOn: number; // Milliseconds since 1970.
  readonly identity: string;
  readonly kind: "Communication Services user" | "Teams user";
}

export function readToken(answer: unknown): IssuedToken {
  const { token, expiresOn, user } = (answer ?? {}) as Record<string, unknown>;
  const expires = typeof expiresOn === "string" ? Date.parse(expiresOn) : NaN;
  const { id, microsoftTeamsUserId } = (user ?? {}) as Record<string, unknown>;
  if (typeof token !== "string" || typeof id !== "string" || Number.isNaN(expires)) {
    throw new ProblemError({ code: "unusable_answer" });
  }
  const isTeamsUser = typeof microsoftTeamsUserId === "string";
  return {
    token,
    expiresOn: expires,
    identity: id,
    kind: isTeamsUser ? "Teams user" : "Communication Services user",
  };
}

// Returns how long is left, as in "1:05:09" or "9:59".
export function timeLeft(milliseconds: number): string {
  const seconds = Math.max(0, Math.ceil(milliseconds / 1000));
  const two = (value: number): string => String(value).padStart(2, "0");
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60];
  return hours > 0 ? `${hours}:${two(minutes)}:${two(seconds % 60)}` : `${minutes}:${two(seconds % 60)}`;
}
