/** The figures beside the list: messages per minute, and their delay from Kafka to this screen. */
import { duration } from "./words.js";

const MINUTES = 30;
const DELAYS = 300;
const DRAWN = 60;
/** The server sends its time in whole seconds: a smaller difference than this cannot be detected. */
const APART = 2_000;
/** A timestamp further in the future than this is not the time at which a message was sent. */
const FUTURE = 86_400_000;
const WIDTH = 300;
const HEIGHT = 72;

export class Figures {
  #$;
  #clock = 0; // the server's clock minus this device's
  #since = Infinity; // when this page became live, by the server's clock
  #seconds = new Map(); // messages by the second of their timestamp
  #oldest = Infinity;
  #delays = [];
  #drawn = "";

  constructor($) {
    this.#$ = $;
  }

  /** `date` is the header of a response that has just arrived. */
  setClock(date) {
    const difference = date ? Date.parse(date) + 500 - Date.now() : 0;
    if (Math.abs(difference) > APART) this.#clock = difference;
  }

  clear() {
    this.#seconds.clear();
    this.#oldest = this.#since = Infinity;
    this.#delays = [];
  }

  /** Messages are live from now on; the delay of older ones is not measured, because they were read from the backlog. */
  live() {
    this.#since = this.#now();
  }

  /** Counts an arrival and returns its delay in ms, or null if it has none. */
  count({ timestamp }, arrived) {
    const usable = timestamp !== null && timestamp < arrived + this.#clock + FUTURE;
    const when = usable ? timestamp : arrived + this.#clock;
    const second = Math.floor(when / 1_000);
    this.#seconds.set(second, (this.#seconds.get(second) ?? 0) + 1);
    this.#oldest = Math.min(this.#oldest, when);
    if (!usable || timestamp < this.#since) return null;
    const delay = arrived + this.#clock - timestamp;
    this.#delays.push(delay);
    if (this.#delays.length > DELAYS) this.#delays.shift();
    return Math.max(0, delay - this.#base());
  }

  /** Redraws if something has changed, and returns the number of messages in the last minute. */
  draw() {
    const now = Math.floor(this.#now() / 1_000);
    for (const second of this.#seconds.keys()) if (second < now - (MINUTES + 1) * 60) this.#seconds.delete(second);
    const rate = this.#sum(now - 60, now + 60);
    const drawn = `${now - (now % 60)} ${[...this.#seconds].join()} ${this.#delays.join()} ${rate}`;
    if (drawn !== this.#drawn) {
      this.#drawn = drawn;
      this.#drawRate(now, rate);
      this.#drawDelay();
    }
    return rate;
  }

  #now() {
    return Date.now() + this.#clock;
  }

  #sum(from, to) {
    let sum = 0;
    for (let second = from + 1; second <= to; second += 1) sum += this.#seconds.get(second) ?? 0;
    return sum;
  }

  #drawRate(now, rate) {
    const minute = now - (now % 60);
    const minutes = Array.from({ length: MINUTES }, (_, index) => minute - (MINUTES - 1 - index) * 60);
    // The count of a minute is unknown if this page has received only a part of it.
    const counts = minutes.map((start) => (start * 1_000 < this.#oldest - 60_000 ? null : this.#sum(start - 1, start + 59)));
    this.#$("rate-figure").textContent = String(rate);
    bars(this.#$("rate"), counts);
  }

  /**
   * If the clocks of Kafka and of this device are known to differ (a message seems to come from the future, or the server's clock is
   * far off), only differences between messages can be measured: the fastest one counts as 0.
   */
  #base() {
    const fastest = Math.min(...this.#delays);
    return fastest < Infinity && (this.#clock !== 0 || fastest < 0) ? fastest : 0;
  }

  #drawDelay() {
    const base = this.#base();
    const delays = this.#delays.map((delay) => delay - base);
    const sorted = delays.toSorted((a, b) => a - b);
    const at = (share) => duration(sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))]);
    // With fewer than 100 messages, p99 is the maximum.
    const slow = sorted.length < 100 ? `max ${at(1)}` : `p99 ${at(0.99)}`;
    this.#$("delay-figure").textContent = sorted.length ? `p50 ${at(0.5)} · ${slow}` : "No live messages yet";
    this.#$("skew").hidden = base === 0;
    line(this.#$("delay"), delays.slice(-DRAWN));
  }
}

function bars(svg, values) {
  const most = Math.max(1, ...values);
  const step = WIDTH / values.length;
  const shapes = values.map((value, index) => {
    const height = value === null ? 2 : Math.max(1, (value / most) * HEIGHT);
    const box = { x: index * step + 1, y: HEIGHT - height, width: step - 2, height, rx: 1.5 };
    return shape("rect", { ...box, class: value === null ? "unknown" : "known" });
  });
  show(svg, shapes, String(most));
}

function line(svg, values) {
  const most = Math.max(10, ...values);
  const x = (index) => WIDTH - 4 - (values.length - 1 - index) * ((WIDTH - 8) / (DRAWN - 1));
  const y = (value) => HEIGHT - 2 - (value / most) * (HEIGHT - 6);
  const points = values.map((value, index) => `${x(index).toFixed(1)},${y(value).toFixed(1)}`);
  const shapes = [shape("line", { x1: 0, y1: HEIGHT - 1, x2: WIDTH, y2: HEIGHT - 1 }), shape("polyline", { points: points.join(" ") })];
  if (values.length > 0) shapes.push(shape("circle", { cx: x(values.length - 1), cy: y(values.at(-1)), r: 3 }));
  show(svg, shapes, values.length > 0 ? duration(most) : "");
}

function show(svg, shapes, most) {
  svg.parentElement.dataset.most = most;
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.replaceChildren(...shapes);
}

function shape(name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}
