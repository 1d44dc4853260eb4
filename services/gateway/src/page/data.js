/** The document of a session, requested each second. */
import { sentenceOf } from "./sentence.js";
import { documentInWords } from "./words.js";

const PERIOD = 1_000;
/** After an answer that is no document, such as 429 or 503. */
const PAUSE = 5_000;

/**
 * Calls `show` with `{text, sentence, problem}`: the document as text (null if there is none yet), a sentence about it, and whether it
 * cannot be read at present. Returns a function that stops it.
 */
export function watchDocument(id, show) {
  let stopped = false;
  let timer;
  let etag = null;
  const poll = async () => {
    let pause = PERIOD;
    // A page that nobody sees requests nothing.
    if (!document.hidden) {
      const found = await read(id, etag);
      if (stopped) return;
      etag = found.etag;
      if (found.problem) pause = PAUSE;
      if (!found.unchanged) show(found);
    }
    timer = setTimeout(poll, pause);
  };
  poll();
  return () => {
    stopped = true;
    clearTimeout(timer);
  };
}

async function read(id, etag) {
  try {
    const headers = etag ? { "if-none-match": etag } : {};
    const signal = AbortSignal.timeout(10_000);
    const answer = await fetch(`data?${new URLSearchParams({ session_id: id })}`, { headers, signal, cache: "no-store" });
    if (answer.status === 304) return { etag, unchanged: true };
    const body = await answer.text();
    // Before the first event; a JSON error says instead that there is no such endpoint.
    const isMissing = answer.status === 404 && !answer.headers.get("content-type")?.includes("json");
    if (isMissing) return { etag: null, text: null, sentence: "There are no events of this session yet.", problem: false };
    if (!answer.ok) throw new Error(`${sentenceOf(body)} (status ${answer.status})`);
    const found = JSON.parse(body);
    const text = JSON.stringify(found, null, 2);
    return { etag: answer.headers.get("etag"), text, sentence: documentInWords(found), problem: false };
  } catch (error) {
    const reason = error instanceof TypeError ? "the gateway cannot be reached" : error.message;
    return { etag: null, sentence: `The document cannot be read: ${reason}.`, problem: true };
  }
}
