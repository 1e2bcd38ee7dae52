// Tells what is going on: one line that screen readers announce, and the list of requests.

import { find, setText } from "./dom.ts";
import type { Problem } from "./problems.ts";

const KEPT = 20;

export function announce(text: string): void {
  setText("#status", text);
}

// Adds a request to the list of what this page has asked the broker for.
export function record(request: string, status: number | undefined, ms: number, problem?: Problem): void {
  const list = find<HTMLOListElement>("#requests");
  const line = document.createElement("li");
  const part = (className: string, text: string): void => {
    const element = document.createElement("span");
    element.className = className;
    element.textContent = text;
    line.append(element, " ");
  };
  part("time", new Date().toLocaleTimeString([], { hour12: false }));
  part("request", request);
  part(problem === undefined ? "answer good" : "answer bad", String(status ?? "no answer"));
  part("note", problem === undefined ? `${Math.round(ms)} ms` : problem.code);
  list.querySelector(".none")?.remove();
  list.prepend(line);
  while (list.children.length > KEPT) list.lastElementChild!.remove();
}
