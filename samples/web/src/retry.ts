// Decides whether and when a request is repeated.

export const ATTEMPTS = 5;
// Somebody is looking at the page: a longer wait is theirs to decide on.
const PATIENCE_SECONDS = 60;
const WORTH_REPEATING = new Set([429, 503, 504]);

interface Refusal {
  readonly code: string;
  readonly status?: number | undefined; // Undefined without an answer.
  readonly retryAfter?: number | undefined; // Seconds.
}

function mayPass({ code, status }: Refusal): boolean {
  if (code === "misconfigured") return false; // Until the operator corrects it.
  // A page sees no answer where the host's own lacks the CORS headers, too, as a 429 may.
  if (status === undefined) return true;
  // A 502 only from the host: the broker's own would stay the same.
  return WORTH_REPEATING.has(status) || code === "http_502";
}

// Returns the seconds in a `Retry-After` header, which has seconds or a date (RFC 9110, 10.2.3).
export function retryAfterSeconds(header: string | null, now: number): number | undefined {
  if (header === null) return undefined;
  if (/^\s*\d+\s*$/.test(header)) return Number(header);
  const moment = Date.parse(header);
  return Number.isNaN(moment) ? undefined : Math.max(0, Math.ceil((moment - now) / 1000));
}

// Returns how many seconds to wait before the next attempt, or undefined to give up.
//
// The wait is never shorter than Retry-After, and grows without it. The jitter on top keeps apart
// the many pages that were refused in the same moment. `random` is a number from 0 to 1, and
// `elapsed` is how many seconds ago the first attempt was.
export function secondsUntilNextAttempt(
  refusal: Refusal,
  attempt: number,
  elapsed: number,
  random: number,
): number | undefined {
  if (!mayPass(refusal) || attempt >= ATTEMPTS) return undefined;
  const least = Math.max(refusal.retryAfter ?? 0, 2 ** (attempt - 1));
  const wait = least + (random * least) / 2;
  return elapsed + wait > PATIENCE_SECONDS ? undefined : wait;
}

// Waits, and rejects as soon as the signal is aborted.
export function sleep(seconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const stop = (): void => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", stop);
      resolve();
    }, seconds * 1000);
    if (signal.aborted) stop();
    else signal.addEventListener("abort", stop, { once: true });
  });
}
