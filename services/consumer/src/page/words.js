/** The page's texts: states, gaps and times in plain words. */

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const parts = { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" };
const dayAndClock = new Intl.DateTimeFormat(undefined, parts);
const yearAndClock = new Intl.DateTimeFormat(undefined, { year: "numeric", ...parts });
const calendar = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

/** The range of dates in both directions (ECMA-262); Kafka accepts any number as a timestamp. */
const MOST = 8.64e15;

/** The local time of day, with the date if it is not today, and the year if it is another; the number itself if it is out of range. */
export function time(milliseconds) {
  if (Math.abs(milliseconds) > MOST) return String(milliseconds);
  const [then, now] = [new Date(milliseconds), new Date()];
  if (then.toDateString() === now.toDateString()) return clock.format(then);
  return (then.getFullYear() === now.getFullYear() ? dayAndClock : yearAndClock).format(then);
}

export function dateAndTime(milliseconds) {
  return Math.abs(milliseconds) > MOST ? `timestamp ${milliseconds}` : calendar.format(milliseconds);
}

export function duration(milliseconds) {
  if (milliseconds < 1_000) return `${Math.round(milliseconds)} ms`;
  if (milliseconds < 100_000) return `${(milliseconds / 1_000).toFixed(1)} s`;
  return `${Math.round(milliseconds / 60_000)} min`;
}

/** The reason if Kafka itself is unreachable; any other reason concerns the topic. */
const UNREACHABLE = "Kafka does not answer";

const NAMES = { sse: "SSE", websocket: "WebSocket", polling: "polling" };

export function stateInWords({ name, until, reason, transport }) {
  if (name === "live") return transport ? `Live over ${NAMES[transport]}` : "Live";
  if (name === "away") return reason && reason !== UNREACHABLE ? "The topic cannot be read" : "Kafka is unreachable";
  if (name === "ended") return reason === "closed" ? "Closed" : `Ended: ${reason}`;
  if (name === "connecting") return "Connecting…";
  if (name === "signed-out") return "Not signed in";
  const seconds = Math.max(0, Math.ceil((until - Date.now()) / 1_000));
  return `Disconnected, reconnecting in ${seconds} s`;
}

/** An explanation of the state for the user, in one or two sentences; empty if none is needed. */
export function stateExplained({ name, since, reason, transport }) {
  if (name === "away" && reason && reason !== UNREACHABLE) {
    return `The topic has been unreadable since ${time(Date.parse(since))}: ${reason}.`;
  }
  if (name === "away") {
    return `Kafka has been unreachable since ${time(Date.parse(since))}. No new messages can arrive until it is reachable again; none are lost.`;
  }
  if (name === "signed-out") return "Messages are shown to users who have signed in. This page goes on by itself once you have.";
  if (name === "live" && transport) return fallback[transport];
  return "";
}

const fallback = {
  sse: "A proxy between this page and the server blocks WebSocket connections, so this page uses SSE. The proxy must forward the Upgrade header for /ws.",
  websocket: "A proxy between this page and the server buffers SSE, so this page uses a WebSocket. Response buffering must be off for /events.",
  polling:
    "A proxy between this page and the server blocks streams, so this page requests new messages every 2 seconds. Response buffering must be off for /events.",
};

const reasons = {
  retention: () => "Kafka deleted messages here before they were read",
  recreated: () => "The topic was deleted and recreated here; the remaining messages of the old one are lost",
  truncated: () => "The topic lost the end of its log here, and new messages get the same offsets again",
  unreadable: () => "Kafka has a batch here that cannot be decompressed, or whose checksum is wrong",
  "not-parsed": () => "An event from the server cannot be read, so a message may be missing here",
  "unknown-cursor": () => "The last position is unknown, so messages may be missing here",
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

/** The gap; without its ranges if this page does not know their format. */
export function readableGap(gap) {
  const isOffset = (value) => Number.isInteger(value);
  const known = (range) => isOffset(range?.partition) && isOffset(range.from) && (range.to === null || isOffset(range.to));
  return Array.isArray(gap.ranges) && gap.ranges.every(known) ? gap : { ...gap, ranges: [] };
}

/** One gap for two adjacent ones with the same reason, or null: a topic of binary values would otherwise be a list of gaps. */
export function mergeGap(before, gap) {
  const [a, b] = [before?.ranges?.[0], gap.ranges?.[0]];
  if (before?.reason !== gap.reason || gap.reason === "truncated" || before.ranges?.length !== 1 || gap.ranges.length !== 1) return null;
  if (a.partition !== b.partition || a.to !== b.from) return null;
  return { ...gap, ranges: [{ partition: a.partition, from: a.from, to: b.to }] };
}
