// Puts the page together.

import { openAccount } from "./account.ts";
import { Broker } from "./broker.ts";
import { Card } from "./card.ts";
import { loadConfig, type Config } from "./config.ts";
import { find, setText } from "./dom.ts";
import { Entra } from "./entra.ts";
import { problemPanel, type Remedy } from "./problem-panel.ts";
import { ProblemError, type Problem } from "./problems.ts";
import { announce } from "./status.ts";
import { WAYS, wayOf } from "./ways.ts";

function showSignedOut(signIn: () => void): void {
  find("#signed-out").hidden = false;
  find("#sign-in").addEventListener("click", signIn);
}

function showSignedIn(entra: Entra, config: Config): void {
  const { account } = entra;
  find("#signed-in").hidden = false;
  find("#who").hidden = false;
  setText("#name", account?.name ?? "");
  setText("#user-name", account?.username ?? "");
  find("#sign-out").addEventListener("click", () => void guard(() => entra.signOut()));

  const broker = new Broker(config.brokerUrl, (claims) => entra.token(claims));
  const leave = (chosen: Remedy, problem: Problem, resume?: string): void => {
    const options = {
      choose: chosen === "switch-account",
      ...(resume === undefined ? {} : { resume }),
      ...(problem.claims === undefined ? {} : { claims: problem.claims }),
    };
    void guard(() => entra.signIn(options));
  };
  const cards = new Map(
    WAYS.map((way) => [
      way.id,
      new Card(way, broker, (chosen, of, problem) => leave(chosen, problem, of.id)),
    ]),
  );
  find("#ways").replaceChildren(...[...cards.values()].map((card) => card.element));
  openAccount({
    broker,
    // Exchanged tokens are Entra's own: the broker cannot revoke them.
    ended: () => cards.get("mapped")?.forget(),
    remedy: (chosen, problem) => leave(chosen, problem),
  });
  const resumed = wayOf(entra.resumed);
  if (resumed !== undefined) void cards.get(resumed.id)?.get();
}

// Runs something that may fail before there is a card to show it in.
async function guard(action: () => Promise<void>): Promise<void> {
  try {
    await action();
  } catch (error) {
    const problem: Problem = error instanceof ProblemError ? error.problem : { code: "unforeseen" };
    const reload = (): void => location.reload();
    for (const view of ["#signed-out", "#signed-in"]) find(view).hidden = true;
    find("#page-problem").hidden = false;
    find("#page-problem > div").replaceChildren(problemPanel(problem, reload));
  }
}

async function open(): Promise<void> {
  const config = await loadConfig().catch((error: unknown) => {
    throw new ProblemError({ code: "no_configuration", detail: String(error) });
  });
  const entra = await Entra.open(config);
  if (entra.account !== undefined) showSignedIn(entra, config);
  else showSignedOut(() => void guard(() => entra.signIn()));
}

// The SDK's timer awaits nothing, so a refresh that failed comes here, too. The card shows it.
window.addEventListener("unhandledrejection", (event) => {
  if (event.reason instanceof ProblemError) event.preventDefault();
});

void guard(open).finally(() => {
  find("main").setAttribute("aria-busy", "false");
  announce("");
});
