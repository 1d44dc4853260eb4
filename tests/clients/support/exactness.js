import assert from "node:assert/strict";

/** Each text of each partition came once, in its order, and nothing else came. Messages have `partition` and `data`. */
export function cameOnceInOrder(messages, sent) {
  for (const [partition, expected] of sent.entries()) {
    const got = messages.filter((message) => message.partition === partition).map(({ data }) => data);
    const [came, wanted] = [new Set(got), new Set(expected)];
    const doubled = got.filter((text, at) => got.indexOf(text) !== at);
    const missing = expected.filter((text) => !came.has(text));
    const foreign = got.filter((text) => !wanted.has(text));
    const found = { partition, doubled: some(doubled), missing: some(missing), foreign: some(foreign) };
    assert.deepEqual(found, { partition, doubled: some([]), missing: some([]), foreign: some([]) });
    const at = got.findIndex((text, at) => text !== expected[at]);
    assert.equal(at, -1, `the order of partition ${partition} differs from message ${at} on`);
  }
  const others = messages.filter(({ partition }) => !(partition in sent));
  assert.equal(others.length, 0, "messages of other partitions");
}

/** What a failure shows of many texts. */
function some(texts) {
  return { count: texts.length, first: texts.slice(0, 3).map((text) => text.slice(-40)) };
}
