/**
 * The list of messages. It is bounded: messages removed at one end are loaded again when the user scrolls there.
 *
 * `ul#messages` holds one `li` for each message and nothing else, and the text of an `li` is the text of its message: scripts count
 * and read them. So time and delay are attributes that the style sheet shows, and a gap is an attribute of the message that
 * follows it; after the last message it is shown below the list. (Screen readers announce such text, but browsers cannot find or
 * copy it. Therefore the page also lists each gap as text, in "Missing messages".)
 */
import { inOrder } from "./link.js";
import { dateAndTime, duration, gapInWords, mergeGap, time } from "./words.js";

const MOST = 2_000;
const MOST_CHARACTERS = 8_000_000;
const PAGE = 100;
/** Messages longer than this have their own scroll bar. */
const LONG = 1_500;
/** Within this many pixels from an end, the user is considered to be there. */
const END = 40;
const BEGINNING = 300;
/** This many milliseconds without a message are a pause. */
const SETTLED = 500;

export class MessageList {
  loaded = 0; // when older messages were last prepended
  #$;
  #fetchPage;
  #reached;
  #shown;
  #waiting = []; // arrived, but not in the list yet
  #planned = false;
  #filling; // the timer that loads older messages if the list is short
  #held = false; // the end of the list is being fetched: arrivals wait
  #messages = new WeakMap();
  #characters = 0;
  #gaps = []; // after the last message
  #older = null; // the cursor before the first message; null: unknown, or there are no messages
  #atBeginning = false;
  #following = true; // the reader is at the end
  #cutOff = false; // the newest are not in the list, because the reader is far above
  #unseen = 0;
  #loading = null;

  /**
   * `fetchPage(query)` returns a page of history, `reached()` the cursor of the stream, and
   * `shown(message, now)` is called for each arrival and returns its delay, if known.
   */
  constructor($, { fetchPage, reached, shown }) {
    this.#$ = $;
    this.#fetchPage = fetchPage;
    this.#reached = reached;
    this.#shown = shown;
    $("older").addEventListener("click", () => this.#loadOlder());
    $("newest").addEventListener("click", () => this.#showNewest());
    $("scroller").addEventListener("scroll", () => this.#scrolled(), { passive: true });
    // A narrower window makes more lines: a reader at the end stays there.
    new ResizeObserver(() => this.#toEnd()).observe($("scroller"));
    document.addEventListener("visibilitychange", () => this.#flush());
  }

  clear() {
    this.#waiting = [];
    this.#gaps = [];
    this.#older = this.#loading = null;
    this.#atBeginning = this.#cutOff = this.#held = false;
    this.#following = true;
    this.#unseen = this.#characters = 0;
    this.#$("messages").replaceChildren();
    this.#describe();
  }

  /** The stream has started after this cursor. */
  begin(cursor) {
    this.#older ??= cursor;
    if (this.#older === null) this.#atBeginning = true; // no cursor: the stream began with the topic
    this.#plan();
  }

  /** A message or a gap has arrived. */
  append(event) {
    this.#waiting.push(event);
    this.#plan();
  }

  /** The day has changed: times without a date would seem to be of the new day. */
  showDates() {
    for (const item of this.#$("messages").children) {
      if (item.dataset.time) item.dataset.time = time(this.#messages.get(item).timestamp);
    }
  }

  #plan() {
    // Under load, waiting messages must not outgrow the list; a hidden tab never draws a frame.
    if (this.#waiting.length > MOST) return this.#flush();
    if (this.#planned) return;
    this.#planned = true;
    if (document.hidden) queueMicrotask(() => this.#flush());
    else requestAnimationFrame(() => this.#flush());
  }

  #flush() {
    this.#planned = false;
    if (this.#held) return;
    const now = Date.now();
    const added = document.createDocumentFragment();
    for (const event of this.#waiting) {
      const delay = event.type === "message" ? this.#delay(event, now) : null;
      if (event.type === "message" && (this.#cutOff || !this.#following)) this.#unseen += 1;
      if (this.#cutOff) continue;
      if (event.type === "gap") this.#gaps = withGap(this.#gaps, event);
      else added.append(this.#item(event, this.#gaps.splice(0), delay));
    }
    this.#waiting = [];
    this.#$("messages").append(added);
    this.#trim();
    this.#toEnd();
    this.#describe();
    this.#fillLater();
  }

  #delay(message, now) {
    try {
      return this.#shown(message, now);
    } catch (error) {
      console.error("the delay of a message cannot be shown", error);
      return null;
    }
  }

  /** The item of a message; if it cannot be shown, the item says so and the others are unaffected. */
  #item(message, gaps, delay = null) {
    try {
      return this.#made(message, gaps, delay);
    } catch (error) {
      console.error("a message cannot be shown", error);
      const item = document.createElement("li");
      item.textContent = `The message at partition ${message.partition}, offset ${message.offset} cannot be shown.`;
      this.#messages.set(item, message);
      this.#characters += item.textContent.length;
      return item;
    }
  }

  #made(message, gaps, delay) {
    const item = document.createElement("li");
    const text = typeof message.data === "string" ? message.data : "";
    item.textContent = text;
    item.title = `partition ${message.partition}, offset ${message.offset}`;
    if (message.timestamp !== null) {
      item.dataset.time = time(message.timestamp);
      item.title = `${dateAndTime(message.timestamp)}, ${item.title}`;
    }
    if (delay !== null) {
      item.dataset.delay = duration(delay);
      item.classList.add("new");
    }
    if (message.data === null) item.classList.add("null");
    if (gaps.length > 0) item.dataset.gap = gaps.map(gapInWords).join("\n");
    if (text.length > LONG) {
      item.classList.add("long");
      item.tabIndex = 0; // or the keys could not scroll it
    }
    this.#messages.set(item, message);
    this.#characters += text.length;
    return item;
  }

  /** Removes excess messages at the end of the list that is out of sight. */
  #trim() {
    const items = this.#$("messages").children;
    let cursor;
    while (items.length > MOST || (this.#characters > MOST_CHARACTERS && items.length > 1) || cursor === null) {
      const item = this.#following ? items[0] : items[items.length - 1];
      if (!item) return;
      const message = this.#messages.get(item);
      this.#characters -= item.textContent.length;
      item.remove();
      if (this.#following) {
        // A message without a cursor cannot be an end of the list: then the next one is removed too.
        cursor = message.cursor;
        this.#older = cursor ?? this.#older;
        this.#atBeginning = false;
        // The page being loaded no longer precedes the first message.
        if (this.#loading) this.#$("older").textContent = "Older messages";
        this.#loading = null;
      } else {
        this.#cutOff = true;
        this.#gaps = [];
      }
    }
  }

  async #loadOlder() {
    if (this.#loading || !this.#older || this.#atBeginning) return;
    const loading = (this.#loading = {});
    this.#$("older").textContent = "Loading…";
    let problem = "";
    try {
      const page = await this.#fetchPage({ before: this.#older, limit: PAGE });
      if (this.#loading !== loading) return; // the topic has changed meanwhile
      this.#prepend(page);
    } catch (error) {
      problem = ` (${error.message})`;
    }
    if (this.#loading !== loading) return;
    this.#loading = null;
    this.#$("older").textContent = `Older messages${problem}`;
    this.#describe();
    if (!problem) this.#fill();
  }

  #prepend(page) {
    const scroller = this.#$("scroller");
    const first = this.#$("messages").firstElementChild;
    scroller.ariaLive = "off"; // old messages are not announced
    this.loaded = Date.now();
    const { scrollHeight, scrollTop } = scroller;
    const { added, gaps } = this.#items(page);
    if (first) first.dataset.gap = [...gaps.map(gapInWords), first.dataset.gap ?? []].flat().join("\n");
    else this.#gaps.unshift(...gaps);
    if (first?.dataset.gap === "") delete first.dataset.gap;
    this.#$("messages").prepend(added);
    this.#older = page.before ?? this.#older;
    this.#atBeginning = page.before === null || page.messages.length + page.gaps.length === 0;
    this.#describe();
    if (this.#following) return this.#toEnd();
    scroller.scrollTop = scrollTop + scroller.scrollHeight - scrollHeight;
    this.#trim();
  }

  #items(page) {
    const added = document.createDocumentFragment();
    let gaps = [];
    for (const event of inOrder(page)) {
      if (event.reason) gaps = withGap(gaps, event);
      else added.append(this.#item(event, gaps.splice(0)));
    }
    return { added, gaps };
  }

  async #showNewest() {
    if (this.#held) return;
    this.#flush();
    if (this.#cutOff) {
      this.#held = true;
      const loading = (this.#loading = {});
      try {
        const page = await this.#fetchPage({ before: this.#reached(), limit: PAGE });
        if (this.#loading !== loading) return;
        this.#characters = 0;
        const { added, gaps } = this.#items(page);
        this.#$("messages").replaceChildren(added);
        this.#gaps = gaps;
        this.#older = page.before ?? this.#older;
        this.#atBeginning = page.before === null;
        this.#cutOff = false;
      } catch (error) {
        this.#$("newest").textContent = `Cannot load the newest messages right now (${error.message})`;
        return;
      } finally {
        if (this.#loading === loading) {
          this.#loading = null;
          this.#held = false;
        }
      }
    }
    this.#following = true;
    this.#unseen = 0;
    this.#flush();
    this.#$("scroller").focus({ preventScroll: true });
  }

  #scrolled() {
    const { scrollTop, clientHeight, scrollHeight } = this.#$("scroller");
    this.#following = !this.#cutOff && scrollTop + clientHeight > scrollHeight - END;
    if (this.#following) this.#unseen = 0;
    this.#describe();
    // At the end, it may have been this list that scrolled, when the first messages arrived.
    if (this.#following) this.#fillLater();
    else this.#fill();
  }

  /** Loads older messages if the list is short after a pause: while the stream's history is arriving, it may still fill. */
  #fillLater() {
    clearTimeout(this.#filling);
    this.#filling = setTimeout(() => this.#isShort() && this.#loadOlder(), SETTLED);
  }

  #isShort() {
    const { clientHeight, scrollHeight } = this.#$("scroller");
    return scrollHeight - clientHeight < BEGINNING && !document.hidden;
  }

  /** Loads older messages while the beginning of the list is in sight. */
  #fill() {
    if (this.#$("scroller").scrollTop < BEGINNING && !document.hidden) this.#loadOlder();
  }

  #toEnd() {
    if (this.#following) this.#$("scroller").scrollTop = this.#$("scroller").scrollHeight;
  }

  #describe() {
    const $ = this.#$;
    $("older").hidden = this.#atBeginning || !this.#older;
    $("origin").hidden = !this.#atBeginning || $("messages").childElementCount === 0;
    $("empty").hidden = !this.#atBeginning || $("messages").childElementCount > 0;
    $("tail").textContent = this.#gaps.map(gapInWords).join("\n");
    $("newest").hidden = this.#following;
    const unseen = `${this.#unseen} new message${this.#unseen === 1 ? "" : "s"}`;
    $("newest").textContent = this.#unseen > 0 ? unseen : "Newest messages";
  }
}

/** Adds a gap, merged with an adjacent one; keeps at most 20. */
function withGap(gaps, gap) {
  const merged = mergeGap(gaps.at(-1), gap);
  return [...(merged ? gaps.slice(0, -1) : gaps), merged ?? gap].slice(-20);
}
