/** The counts of foods as a bar chart that follows their stream. */
import { follow, stateInWords } from "./stream.js";

/** How long a row that changed is highlighted. */
const NEW = 2_000;

const SVG = "http://www.w3.org/2000/svg";
const $ = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en");

/** The count and the elements of each food. */
const rows = new Map();
let drawing = 0;

follow("aggregated/stream", {
  snapshot(all) {
    for (const { item } of rows.values()) item.remove();
    rows.clear();
    for (const { food, count } of all) row(food).count = count;
    draw();
  },
  change(changed) {
    for (const { food, count } of changed) {
      const changing = row(food);
      changing.count = count;
      changing.item.classList.add("new");
      clearTimeout(changing.timer);
      changing.timer = setTimeout(() => changing.item.classList.remove("new"), NEW);
    }
    const [{ food, count }] = changed.slice(-1);
    $("latest").textContent = changed.length === 1 ? `${food}: ${number.format(count)}` : `${changed.length} foods`;
    draw();
  },
  state(state, sentence) {
    document.documentElement.dataset.state = { off: "ended", "signed-out": "waiting" }[state] ?? state;
    $("state").textContent = stateInWords[state];
    $("spoken").textContent = sentence;
    $("notice").textContent = sentence;
    $("notice").hidden = state === "live";
    const none = state === "off";
    $("totals").hidden = none;
    $("rows").hidden = none;
  },
});

function row(food) {
  if (rows.has(food)) return rows.get(food);
  const item = document.createElement("li");
  const name = element("span", "food", food);
  name.title = food;
  const bar = document.createElementNS(SVG, "svg");
  bar.setAttribute("class", "bar");
  bar.setAttribute("aria-hidden", "true");
  const rectangle = document.createElementNS(SVG, "rect");
  rectangle.setAttribute("height", "100%");
  rectangle.setAttribute("rx", "3");
  bar.append(rectangle);
  const text = element("span", "count", "");
  item.append(name, bar, text);
  const made = { food, count: 0, item, rectangle, text, timer: 0 };
  rows.set(food, made);
  return made;
}

function element(name, kind, text) {
  const made = document.createElement(name);
  made.className = kind;
  made.textContent = text;
  return made;
}

/** Once per frame at most, however many changes there are. */
function draw() {
  cancelAnimationFrame(drawing);
  drawing = requestAnimationFrame(() => {
    const sorted = [...rows.values()].sort((a, b) => b.count - a.count || (a.food < b.food ? -1 : 1));
    const largest = sorted[0]?.count ?? 0;
    let total = 0;
    let place = $("rows").firstChild;
    for (const { count, item, rectangle, text } of sorted) {
      total += count;
      rectangle.setAttribute("width", `${largest > 0 ? (100 * count) / largest : 0}%`);
      text.textContent = number.format(count);
      // Only what is in another place is moved, so that a selection and the scroll position stay.
      if (item === place) place = place.nextSibling;
      else $("rows").insertBefore(item, place);
    }
    $("total").textContent = number.format(total);
    $("foods").textContent = number.format(sorted.length);
    if (sorted.length === 0) $("latest").textContent = "–";
  });
}
