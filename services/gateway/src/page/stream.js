/** A stream of server-sent events that continues whatever happens. */
import { sentenceOf } from "./sentence.js";

const PAUSE = 5_000;

export const stateInWords = { live: "Live", waiting: "Waiting", "signed-out": "Not signed in", off: "Off" };

/**
 * Follows the stream at `address`. Calls `on.start` with what it contains, if it says so; `on.snapshot` and `on.change` with rows;
 * `on.state` with `live`, `waiting`, `signed-out` or `off`, and a sentence, when they are others than before. `off` means that this
 * gateway does not have it, which does not change.
 */
export function follow(address, on) {
  let reported = "";
  const report = (state, sentence) => {
    if (reported === state + sentence) return;
    reported = state + sentence;
    on.state(state, sentence);
  };
  open(address, on, report);
}

function open(address, on, report) {
  let problem = null;
  let isComplete = false;
  const source = new EventSource(address);
  const listen = (type, act) => source.addEventListener(type, ({ data }) => act(JSON.parse(data)));
  // Before the snapshot, the page shows nothing, or what may be out of date.
  const live = () => problem === null && isComplete && report("live", "Live");
  listen("start", (about) => on.start?.(about));
  listen("snapshot", (rows) => {
    on.snapshot(rows);
    isComplete = true;
    live();
  });
  listen("change", (rows) => {
    on.change(rows);
    live();
  });
  listen("status", ({ source: state, reason }) => {
    problem = state === "down" ? reason : null;
    if (problem === null) live();
    else report("waiting", `No new results at present: ${problem}.`);
  });
  source.onopen = () => {
    problem = null;
    isComplete = false;
  };
  source.onerror = async () => {
    if (source.readyState !== EventSource.CLOSED) return report("waiting", "Disconnected; connecting again…");
    // Browsers hide the response that ends a stream for good; a request without one has the same response.
    const { status, sentence } = await rejection(address);
    if (status === 401) {
      // It continues by itself once somebody has signed in.
      report("signed-out", `Not signed in: ${sentence}.`);
      return setTimeout(() => open(address, on, report), PAUSE);
    }
    if (status >= 400 && status < 600 && status !== 429 && status !== 503) return report("off", `${sentence}.`);
    report("waiting", `Disconnected: ${sentence}. Trying again…`);
    setTimeout(() => open(address, on, report), PAUSE);
  };
}

async function rejection(address) {
  const end = new AbortController();
  try {
    const answer = await fetch(address, { cache: "no-store", signal: end.signal });
    if (answer.ok) return { status: 200, sentence: "the connection broke" };
    return { status: answer.status, sentence: sentenceOf(await answer.text()) };
  } catch {
    return { status: 0, sentence: "the gateway cannot be reached" };
  } finally {
    end.abort();
  }
}
