/** Chromium, and what the tests of this folder need around it. */
import { existsSync } from "node:fs";
import { chromium } from "playwright-core";

const EXECUTABLE = process.env.CHROMIUM ?? "/usr/bin/chromium";
const QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"];

/** Why the test cannot run, or false. In CI nothing is skipped. */
export function missing(what) {
  if (process.env.CI === "true") return false;
  return what ?? (existsSync(EXECUTABLE) ? false : `there is no Chromium at ${EXECUTABLE} (Debian: apt-get install chromium)`);
}

export async function launch(options = []) {
  return chromium.launch({ executablePath: EXECUTABLE, args: [...QUIET, "--disable-component-update", "--disable-sync", ...options] });
}

/** Waits until `condition` answers something true, and answers that; fails with `what` after a while. */
export async function until(what, condition, deadline = 20_000) {
  const end = Date.now() + deadline;
  for (;;) {
    const answer = await condition();
    if (answer) return answer;
    if (Date.now() > end) throw new Error(`did not happen within ${deadline} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 30));
  }
}

/** The texts of the messages that a page shows. */
export const texts = (page) => page.locator("#messages > li").allTextContents();
