// Takes the pictures of the page that the documents show.

import { join } from "node:path";
import { DESKTOP, PHONE, Visit } from "./scenarios/visit.mjs";

const folder = process.argv[2];
const MAPPED = "Mapped identity";
const OTHERS = ["Entra ID user", "Teams user"];

async function picture(name, { person, ways, ...look }) {
  await Visit.make(look, async (visit) => {
    await visit.signIn(person);
    for (const way of ways) {
      await visit.card(way).get();
      await visit.card(way).becomes("valid", "refused");
    }
    await visit.isAccessible();
    await visit.page.mouse.move(0, 0);
    await visit.page.evaluate(() => {
      document.activeElement.blur();
      scrollTo(0, 0);
    });
    await visit.page.screenshot({ path: join(folder, name) });
  });
}

await picture("page.png", {
  person: "Ada",
  ways: [...OTHERS, MAPPED],
  viewport: { ...DESKTOP, height: 880 },
});
await picture("page-dark.png", {
  person: "Fadi",
  ways: [OTHERS[1], OTHERS[0], MAPPED],
  viewport: { ...DESKTOP, height: 880 },
  colorScheme: "dark",
});
await picture("page-phone.png", {
  person: "Grace",
  ways: [MAPPED],
  viewport: { ...PHONE, height: 940 },
});
