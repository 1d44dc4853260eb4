/**
 * The list of messages. It is bounded: what leaves it at one end is loaded again when somebody goes there.
 *
 * `ul#messages` holds one `li` for each message and nothing else, and the text of an `li` is the text of its message: scripts count
 * and read them. So time and delay stand in attributes that the style sheet shows, and a gap is an attribute of the message that
 * follows it; behind the last message it stands below the list. Each gap is text in "What is missing", too, and is spoken there.
 */
import { dateAndTime, duration, gapInWords, inOrder, mergeGap, time } from "./words.js";

const MOST = 2_000;
const MOST_CHARACTERS = 8_000_000;
/** Longer messages get an edge and scroll by themselves. */
const LONG = 1_500;
const PAGE = 100;
/** So near to the end counts as there. */
const NEAR = 40;

export class MessageList {
  settled = false;
  #$;
  #fetchPage;
  #reached;
  #shown;
  #waiting = []; // has arrived, and is not yet in the list
  #planned = false;
  #messages = new WeakMap();
  #characters = 0;
  #gaps = []; // in front of the next message
  #older = null; // the cursor before the first message; null while that is not known
  #atBeginning = false;
  #cutOff = false; // the newest are not in the list: the reader is far above
  #unseen = 0;
  #loading = false;

  constructor($, { fetchPage, reached, shown }) {
    this.#$ = $;
    this.#fetchPage = fetchPage;
    this.#reached = reached;
    this.#shown = shown;
    $("older").addEventListener("click", () => this.#loadOlder());
    $("newest").addEventListener("click", () => this.#toNewest());
    $("scroller").addEventListener("scroll", () => this.#scrolled(), { passive: true });
    new IntersectionObserver(([entry]) => entry.isIntersecting && this.#loadOlder(), {
      root: $("scroller"),
      rootMargin: "300px 0px 0px 0px",
    }).observe($("beginning"));
    // A narrower window makes more lines: who was at the end stays there.
    new ResizeObserver(() => this.#following && this.#toEnd()).observe($("scroller"));
    document.addEventListener("visibilitychange", () => this.#flush());
  }

  clear() {
    this.#waiting = [];
    this.#gaps = [];
    this.#older = null;
    this.#atBeginning = this.#cutOff = this.settled = false;
    this.#unseen = 0;
    this.#characters = 0;
    this.#following = true;
    this.#$("messages").replaceChildren();
    this.#update();
  }

  /** The stream has begun at this cursor. */
  begin(cursor) {
    this.#older ??= cursor;
    this.#plan();
  }

  /** A message or a gap has arrived. */
  append(event) {
    this.#waiting.push(event);
    this.#plan();
  }

  // In a hidden tab no frame is ever drawn, and in a flood what waits must not outgrow the list.
  #plan() {
    if (this.#waiting.length > MOST) return this.#flush();
    if (this.#planned) return;
    this.#planned = true;
    if (document.hidden) queueMicrotask(() => this.#flush());
    else requestAnimationFrame(() => this.#flush());
  }

  #flush() {
    this.#planned = false;
    const events = this.#waiting;
    this.#waiting = [];
    const fragment = document.createDocumentFragment();
    const arrived = Date.now();
    for (const event of events) {
      if (event.type === "message") this.#shown(event, arrived);
      if (this.#cutOff) this.#unseen += event.type === "message";
      else if (event.type === "gap") this.#noteGap(event);
      else fragment.append(this.#item(event, arrived));
    }
    if (!this.#following) this.#unseen += fragment.childElementCount;
    this.#$("messages").append(fragment);
    this.#trim();
    if (this.#following) this.#toEnd();
    this.#update();
  }

  #noteGap(gap) {
    const merged = mergeGap(this.#gaps.at(-1), gap);
    if (merged) this.#gaps[this.#gaps.length - 1] = merged;
    else this.#gaps.push(gap);
    this.#gaps = this.#gaps.slice(-20);
  }

  #item(message, arrived) {
    const item = document.createElement("li");
    const text = message.data ?? "";
    item.textContent = text;
    if (text.length > LONG) {
      item.className = "long";
      item.tabIndex = 0;
    }
    if (message.data === null) item.className = "null";
    if (message.timestamp !== null) {
      item.dataset.time = time(message.timestamp);
      item.title = `${dateAndTime(message.timestamp)} · `;
    }
    item.title += `partition ${message.partition}, offset ${message.offset}`;
    if (arrived && this.settled) {
      item.classList.add("new");
    }
    if (this.#gaps.length > 0) {
      item.dataset.gap = this.#gaps.map(gapInWords).join("\n");
      this.#gaps = [];
    }
    this.#messages.set(item, message);
    this.#characters += text.length;
    return item;
  }
}
