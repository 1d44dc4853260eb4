/** What the page says: states, gaps and times in plain words. */

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const calendar = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

/** The time of day here; with the date, when that is another day. */
export function time(milliseconds) {
  return clock.format(milliseconds);
}

export function dateAndTime(milliseconds) {
  return calendar.format(milliseconds);
}

export function duration(milliseconds) {
  if (milliseconds < 1_000) return `${Math.round(milliseconds)} ms`;
  if (milliseconds < 100_000) return `${(milliseconds / 1_000).toFixed(1)} s`;
  return `${Math.round(milliseconds / 60_000)} min`;
}

export function stateInWords({ name, until, reason }) {
  if (name === "live") return "Live";
  if (name === "away") return "Kafka is away";
  if (name === "ended") return reason === "closed" ? "Closed" : `Ended: ${reason}`;
  if (name === "connecting") return "Connecting…";
  const seconds = Math.max(0, Math.ceil((until - Date.now()) / 1_000));
  return `Cut off, back in ${seconds} s`;
}

const reasons = {
  retention: () => "Kafka deleted messages here before they were read",
  recreated: () => "The topic was deleted and made anew here; the rest of the old one is gone",
  "unknown-cursor": () => "It is not known where reading stopped, so messages may be missing here",
  "too-large": (count) => (count === 1 ? "A message is too large to be sent here" : "Messages are too large to be sent here"),
  "not-utf8": (count) => (count === 1 ? "A message that is not text was left out" : "Messages that are not text were left out"),
};

export function gapInWords({ reason, ranges = [] }) {
  const count = ranges.reduce((sum, { from, to }) => sum + (to ?? Infinity) - from, 0);
  const words = reasons[reason]?.(count) ?? `Messages are missing here (${reason})`;
  if (ranges.length === 0) return `${words}.`;
  const where = ranges.slice(0, 4).map(({ partition, from, to }) => {
    if (to === null) return `partition ${partition} from offset ${from}`;
    return to - from === 1 ? `partition ${partition}, offset ${from}` : `partition ${partition}, offsets ${from} to ${to - 1}`;
  });
  if (ranges.length > 4) where.push(`${ranges.length - 4} more`);
  return `${words}: ${where.join("; ")}.`;
}

/** One gap for two neighbours with the same reason, or null: a topic of pictures would otherwise be a list of gaps. */
export function mergeGap(before, gap) {
  const [a, b] = [before?.ranges?.[0], gap.ranges?.[0]];
  if (before?.reason !== gap.reason || before.ranges?.length !== 1 || gap.ranges.length !== 1) return null;
  if (a.partition !== b.partition || a.to !== b.from) return null;
  return { ...gap, ranges: [{ partition: a.partition, from: a.from, to: b.to }] };
}

/** The messages and gaps of a page in one order: a gap stands before the first message of its partition that lies behind it. */
export function inOrder({ messages, gaps }) {
  const events = [...messages];
  for (const gap of gaps) {
    const behind = (event) => event.reason === undefined && gap.ranges.some((r) => r.partition === event.partition && (r.to ?? 0) <= event.offset);
    const index = gap.ranges?.length ? events.findIndex(behind) : 0;
    events.splice(index < 0 ? events.length : index, 0, gap);
  }
  return events;
}
