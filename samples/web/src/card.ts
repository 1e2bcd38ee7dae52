// One way to a token: its card, its credential and its countdown.

import type { AzureCommunicationTokenCredential } from "@azure/communication-common";
import { timeLeft, type IssuedToken } from "./answers.ts";
import type { Broker, Watcher } from "./broker.ts";
import { openCredential } from "./credential.ts";
import { find, fromTemplate, setText } from "./dom.ts";
import { problemPanel, type Remedy } from "./problem-panel.ts";
import { adviceFor, endsToken, ProblemError, type Problem } from "./problems.ts";
import { announce, record } from "./status.ts";
import type { Way } from "./ways.ts";

type State = "empty" | "working" | "valid" | "expired" | "refused" | "off";

const BADGES: Readonly<Record<State, string>> = {
  empty: "No token yet",
  working: "Asking …",
  valid: "Valid",
  expired: "Expired",
  refused: "Refused",
  off: "Not enabled",
};

export class Card {
  readonly element = fromTemplate("way");
  private readonly button = find<HTMLButtonElement>(".get", this.element);
  private readonly stopButton = find<HTMLButtonElement>(".stop", this.element);
  private credential: AzureCommunicationTokenCredential | undefined;
  private life = new AbortController(); // Of the credential: ends its refreshing.
  private pending: AbortController | undefined; // Of the request for a new one.
  private scope = "";
  private token: { issuedOn: number; expiresOn: number } | undefined;

  constructor(
    private readonly way: Way,
    private readonly broker: Broker,
    private readonly remedy: (chosen: Remedy, way: Way, problem: Problem) => void,
  ) {
    const heading = find("h2", this.element);
    heading.id = `way-${way.id}`;
    heading.textContent = way.title;
    this.element.setAttribute("aria-labelledby", heading.id);
    this.element.dataset["way"] = way.id;
    setText(".whose", way.whose, this.element);
    if (way.id !== "mapped") find(".choice", this.element).remove();
    this.button.addEventListener("click", () => void this.get());
    this.stopButton.addEventListener("click", () => this.stop());
    this.show("empty");
    setInterval(() => this.tick(), 1000);
  }

  // Gets a token, in a new credential: one that has a token already would not ask for another.
  async get(): Promise<void> {
    if (this.pending !== undefined) return;
    const life = new AbortController();
    this.pending = life;
    this.scope = this.element.querySelector("select")?.value ?? "";
    this.show("working");
    announce(`${this.way.title}: asking for a token.`);
    try {
      const credential = await openCredential({
        broker: this.broker,
        path: this.scope === "" ? this.way.path : `${this.way.path}?scope=${this.scope}`,
        watcher: this.watcher(),
        signal: life.signal,
        issued: (token) => this.showToken(token, life),
        failed: (error) => this.showFailure(error, life),
      });
      this.dispose();
      this.credential = credential;
      this.life = life;
      if (life.signal.aborted) this.dispose();
    } catch (error) {
      this.showFailure(error, life);
    }
  }

  // Drops the token, as after it was revoked.
  forget(): void {
    this.pending?.abort();
    this.pending = undefined;
    this.dispose();
    this.token = undefined;
    this.show("empty");
  }

  private dispose(): void {
    this.life.abort();
    this.credential?.dispose();
    this.credential = undefined;
  }

  private stop(): void {
    this.pending?.abort();
    this.pending = undefined;
    this.show(this.rest);
    announce(`${this.way.title}: stopped.`);
    this.button.focus(); // The button that had the focus is gone.
  }

  // The state while nothing is asked for and nothing was refused.
  private get rest(): State {
    if (this.token === undefined) return "empty";
    return this.token.expiresOn > Date.now() ? "valid" : "expired";
  }

  private watcher(): Watcher {
    return {
      answered: record,
      waits: (problem, seconds, attempt, attempts) => {
        const text = `${adviceFor(problem).title}. Attempt ${attempt} of ${attempts} follows in ${Math.ceil(seconds)} s.`;
        setText(".waiting", text, this.element);
        announce(`${this.way.title}: ${text}`);
      },
    };
  }

  private showState(state: State): void {
    this.element.dataset["state"] = state;
    setText(".badge", BADGES[state], this.element);
  }

  private show(state: State): void {
    this.showState(state);
    const working = state === "working";
    this.element.setAttribute("aria-busy", String(working));
    find(".facts", this.element).hidden = this.token === undefined;
    this.button.textContent = this.token === undefined ? "Get a token" : "Refresh now";
    // Not `disabled`, which would take the focus away from whoever has just pressed it.
    this.button.setAttribute("aria-disabled", String(working));
    this.stopButton.hidden = !working;
    setText(".waiting", "", this.element);
    const place = find(".problem-place", this.element);
    if (place.contains(document.activeElement)) this.button.focus(); // Its "Try again" goes away.
    place.replaceChildren();
  }

  private showToken(token: IssuedToken, life: AbortController): void {
    if (life.signal.aborted) return;
    const again = this.token !== undefined;
    this.pending = undefined;
    this.token = { issuedOn: Date.now(), expiresOn: token.expiresOn };
    this.show(this.rest);
    const expires = new Date(token.expiresOn);
    setText(".identity", token.identity, this.element);
    // The answer does not tell an Entra ID user from an identity that the broker keeps.
    setText(".kind", this.way.id === "entra" ? this.way.title : token.kind, this.element);
    setText(".scopes", this.scope === "" ? this.way.scopes : this.scope.replaceAll(",", " and "), this.element);
    const time = find<HTMLTimeElement>(".expires", this.element);
    time.textContent = expires.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hour12: false });
    time.dateTime = expires.toISOString();
    this.tick();
    announce(`${this.way.title}: ${again ? "the token was refreshed" : "you have a token"}, until ${time.textContent}.`);
  }

  private showFailure(error: unknown, life: AbortController): void {
    if (life.signal.aborted) return;
    const problem = error instanceof ProblemError ? error.problem : { code: "unforeseen" };
    const { calm, title } = adviceFor(problem);
    if (endsToken(problem)) this.forget();
    this.pending = undefined;
    this.show(this.token !== undefined ? this.rest : calm === true ? "off" : "refused");
    const panel = problemPanel(problem, (chosen) =>
      chosen === "repeat" ? void this.get() : this.remedy(chosen, this.way, problem),
    );
    find(".problem-place", this.element).replaceChildren(panel);
    announce(`${this.way.title}: ${title}.`);
  }

  private tick(): void {
    if (this.token === undefined) return;
    const left = this.token.expiresOn - Date.now();
    if (left <= 0 && this.element.dataset["state"] === "valid") {
      this.showState("expired"); // A panel that says why there is no newer token stays.
      announce(`${this.way.title}: the token has expired.`);
    }
    setText(".left", timeLeft(left), this.element);
    const progress = find<HTMLProgressElement>("progress", this.element);
    progress.max = this.token.expiresOn - this.token.issuedOn;
    progress.value = Math.max(0, left);
  }
}
