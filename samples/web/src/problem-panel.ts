// Shows a problem: what happened, what to do, and what to quote to the operator.

import { find, fromTemplate, setText } from "./dom.ts";
import { adviceFor, detailOf, type Problem } from "./problems.ts";

const LABELS = { "sign-in": "Sign in again", "switch-account": "Use another account", repeat: "Try again" };

export type Remedy = keyof typeof LABELS;

export function problemPanel(problem: Problem, remedy: (chosen: Remedy) => void): HTMLElement {
  const advice = adviceFor(problem);
  const panel = fromTemplate("problem");
  panel.classList.toggle("calm", advice.calm === true);
  setText(".title", advice.title, panel);
  setText(".next", advice.next, panel);
  fill(panel, "detail", detailOf(problem));
  fill(panel, "code", [problem.status, problem.code].filter((part) => part !== undefined).join(" "));
  fill(panel, "trace", problem.traceId);
  const link = find<HTMLAnchorElement>("a", panel);
  if (problem.link === undefined) link.remove();
  else link.href = problem.link;
  const button = find<HTMLButtonElement>("button", panel);
  const { action } = advice;
  if (action === undefined) {
    button.remove();
  } else {
    button.textContent = LABELS[action];
    button.addEventListener("click", () => remedy(action));
  }
  return panel;
}

function fill(panel: HTMLElement, name: string, value: string | undefined): void {
  const element = find(`[data-row="${name}"]`, panel);
  if (value === undefined) element.remove();
  else setText(".value", value, element);
}
