// Waiting for a condition, with a deadline.

/** Resolves with what `condition` returns as soon as that is true; fails with `what` was waited for. */
export async function until(what, condition, milliseconds = 20_000) {
  const deadline = Date.now() + milliseconds;
  for (;;) {
    const met = await condition();
    if (met) {
      return met;
    }
    if (Date.now() > deadline) {
      throw new Error(`not within ${milliseconds} ms: ${typeof what === "function" ? what() : what}`);
    }
    await pause(10);
  }
}

/** The pace of a loop; never a replacement for a condition. */
export function pause(milliseconds) {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}
