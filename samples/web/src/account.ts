// What a person can do about the mapped identity: sign out everywhere, and erase it.

import type { Broker, Watcher } from "./broker.ts";
import { find } from "./dom.ts";
import { problemPanel, type Remedy } from "./problem-panel.ts";
import { adviceFor, ProblemError, type Problem } from "./problems.ts";
import { announce, record } from "./status.ts";

interface AccountOptions {
  readonly broker: Broker;
  readonly ended: () => void; // The tokens so far are worthless.
  readonly remedy: (chosen: Remedy, problem: Problem) => void;
}

const LATER = " Communication Services cannot be told right now: it follows within minutes.";

export function openAccount(options: AccountOptions): void {
  const revokeButton = find<HTMLButtonElement>("#revoke");
  const eraseButton = find<HTMLButtonElement>("#erase");
  const dialog = find<HTMLDialogElement>("#erase-dialog");

  const end = async (button: HTMLButtonElement, method: "POST" | "DELETE", path: string, done: string) => {
    if (button.getAttribute("aria-disabled") === "true") return;
    const place = find("#account-outcome");
    if (place.contains(document.activeElement)) button.focus(); // Its "Try again" goes away.
    place.replaceChildren();
    for (const each of [revokeButton, eraseButton]) each.setAttribute("aria-disabled", "true");
    try {
      const { signal } = new AbortController();
      const { status } = await options.broker.call({ method, path, signal, watcher: watcher() });
      options.ended();
      const outcome = document.createElement("p");
      outcome.textContent = done + (status === 202 ? LATER : "");
      place.replaceChildren(outcome); // The status line is far above, out of sight on a phone.
      announce(outcome.textContent);
    } catch (error) {
      const problem = error instanceof ProblemError ? error.problem : { code: "unforeseen" };
      const again = (): void => void end(button, method, path, done);
      place.replaceChildren(
        problemPanel(problem, (chosen) => (chosen === "repeat" ? again() : options.remedy(chosen, problem))),
      );
      announce(`${adviceFor(problem).title}.`);
    } finally {
      for (const each of [revokeButton, eraseButton]) each.removeAttribute("aria-disabled");
    }
  };

  revokeButton.addEventListener("click", () => {
    const done =
      "The tokens of your mapped identity are revoked, and may work for up to 15 minutes more. This page stays signed in.";
    void end(revokeButton, "POST", "/api/token/revoke", done);
  });
  eraseButton.addEventListener("click", () => {
    dialog.returnValue = ""; // What an Escape leaves as it is.
    dialog.showModal();
  });
  dialog.addEventListener("close", () => {
    const done = "Your identity is erased, with its chats and calls.";
    if (dialog.returnValue === "erase") void end(eraseButton, "DELETE", "/api/user", done);
  });
}

function watcher(): Watcher {
  return {
    answered: record,
    waits: (problem, seconds, attempt, attempts) =>
      announce(
        `${adviceFor(problem).title}. Attempt ${attempt} of ${attempts} follows in ${Math.ceil(seconds)} s.`,
      ),
  };
}
