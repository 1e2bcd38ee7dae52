// Decides whether and when a request is repeated.

export const ATTEMPTS = 5;
// Somebody is looking at the page: a longer wait is theirs to decide on.
const LONGEST_WAIT_SECONDS = 60;
const WORTH_REPEATING = new Set([429, 503, 504]);

// Returns the seconds in a `Retry-After` header, which has seconds or a date (RFC 9110, 10.2.3).
export function retryAfterSeconds(header: string | null, now: number): number | undefined {
  if (header === null) return undefined;
  if (/^\s*\d+\s*$/.test(header)) return Number(header);
  const moment = Date.parse(header);
  return Number.isNaN(moment) ? undefined : Math.max(0, Math.ceil((moment - now) / 1000));
}

// Returns how many seconds to wait before the next attempt, or undefined to give up.
//
// The wait is never shorter than Retry-After. The jitter on top of it keeps apart the many pages
// that were refused in the same moment. `random` is a number from 0 to 1.
export function secondsUntilNextAttempt(
  refusal: { status: number | undefined; retryAfter: number | undefined },
  attempt: number,
  random: number,
): number | undefined {
  if (!WORTH_REPEATING.has(refusal.status ?? 0) || attempt >= ATTEMPTS) return undefined;
  const least = refusal.retryAfter ?? 2 ** (attempt - 1);
  if (least > LONGEST_WAIT_SECONDS) return undefined;
  return least + random * Math.max(1, least / 4);
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
