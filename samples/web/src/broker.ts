// Calls the broker: with an Entra token, patiently, and following claims challenges.

import { ProblemError, readProblem, type Problem } from "./problems.ts";
import { ATTEMPTS, secondsUntilNextAttempt, sleep } from "./retry.ts";

// A token that Entra issues in the same moment in which its person signs out everywhere may still
// count as an old one, by the clock of the broker.
const CHALLENGES = 2;
const SECOND_CHALLENGE_SECONDS = 3;

// Returns an Entra token for the broker: a cached one, or one that satisfies the claims.
export type EntraToken = (claims?: string) => Promise<string>;

// What happens during a call, for whoever is watching.
export interface Watcher {
  answered(request: string, status: number | undefined, milliseconds: number, problem?: Problem): void;
  waits(problem: Problem, seconds: number, attempt: number, attempts: number): void;
}

export interface BrokerRequest {
  readonly method: "GET" | "POST" | "DELETE";
  readonly path: string;
  readonly signal: AbortSignal;
  readonly watcher: Watcher;
}

interface Answer {
  readonly status: number;
  readonly body: unknown;
}

export class Broker {
  constructor(
    private readonly url: string,
    private readonly entraToken: EntraToken,
  ) {}

  // Sends a request until there is an answer or no hope. All that this page asks of the broker may
  // be repeated: getting a token, signing out everywhere, erasing. Throws a ProblemError.
  async call(request: BrokerRequest): Promise<Answer> {
    let token = await this.entraToken();
    const began = performance.now();
    let attempt = 1;
    let challenges = 0;
    for (;;) {
      const answer = await this.send(request, token);
      if (!("code" in answer)) return answer;
      if (answer.claims !== undefined && challenges < CHALLENGES) {
        // MSAL would offer its cached token again; with the claims, it asks Entra for another.
        if (challenges > 0) await this.pause(request, answer, SECOND_CHALLENGE_SECONDS, attempt);
        challenges++;
        token = await this.entraToken(answer.claims);
        continue;
      }
      const elapsed = (performance.now() - began) / 1000;
      const seconds = secondsUntilNextAttempt(answer, attempt, elapsed, Math.random());
      if (seconds === undefined) throw new ProblemError(answer);
      await this.pause(request, answer, seconds, attempt);
      attempt++;
      token = await this.entraToken(); // The wait may have outlived the last one.
    }
  }

  private async pause(request: BrokerRequest, problem: Problem, seconds: number, attempt: number) {
    request.watcher.waits(problem, seconds, attempt + 1, ATTEMPTS);
    await sleep(seconds, request.signal);
  }

  private async send(request: BrokerRequest, token: string): Promise<Answer | Problem> {
    const { method, path, signal, watcher } = request;
    const began = performance.now();
    const tell = (status: number | undefined, problem?: Problem): void =>
      watcher.answered(`${method} ${path}`, status, performance.now() - began, problem);
    try {
      const response = await fetch(this.url + path, {
        method,
        signal,
        headers: { Authorization: `Bearer ${token}` },
        cache: "no-store",
        credentials: "omit",
        redirect: "error", // A redirect would carry the token elsewhere.
      });
      const text = await response.text();
      if (response.ok) {
        tell(response.status);
        return { status: response.status, body: text === "" ? undefined : parse(text) };
      }
      const problem = readProblem(response.status, response.headers, text, Date.now());
      tell(response.status, problem);
      return problem;
    } catch (error) {
      if (signal.aborted || error instanceof ProblemError) throw error;
      // The browser does not say why: no network, a certificate, or an origin that is not allowed.
      const problem = { code: "broker_unreachable" };
      tell(undefined, problem);
      return problem;
    }
  }
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw new ProblemError({ code: "unusable_answer" });
  }
}
