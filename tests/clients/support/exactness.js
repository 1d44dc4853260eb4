import assert from "node:assert/strict";

/** Each text of each partition came once, in its order, and nothing else came. Messages have `partition` and `data`. */
export function cameOnceInOrder(messages, sent) {
  const came = sent.map((_, partition) => messages.filter((message) => message.partition === partition).map(({ data }) => data));
  for (const [partition, expected] of sent.entries()) {
    const got = came[partition];
    const doubled = got.filter((text, at) => got.indexOf(text) !== at);
    const missing = expected.filter((text) => !got.includes(text));
    assert.deepEqual({ partition, doubled, missing }, { partition, doubled: [], missing: [] });
    assert.deepEqual(got, expected);
  }
}
