/** Food counts as a client of the original reads them: `GET` or `POST /aggregated`, all rows. Shared by the folders that test it. */

/** The rows, `[{count, food}]`, in the order in which they are sent. `url` is that of the API, `http://host:port`. */
export async function counts(url, { method = "GET" } = {}) {
  const response = await fetch(new URL("/aggregated", url), { method });
  const text = await response.text();
  if (response.status !== 200) throw new Error(`${method} /aggregated: ${response.status} ${text}`);
  return JSON.parse(text);
}

/** The rows as soon as the count of each of these foods, `{food: count}`, is reached. It does not wait for others. */
export async function counted(url, expected, milliseconds = 20_000) {
  const deadline = Date.now() + milliseconds;
  for (;;) {
    const rows = await counts(url).catch((error) => error);
    const found = rows instanceof Error ? {} : Object.fromEntries(rows.map(({ food, count }) => [food, count]));
    if (Object.entries(expected).every(([food, count]) => found[food] >= count)) return rows;
    if (Date.now() > deadline) throw new Error(`no ${JSON.stringify(expected)} within ${milliseconds} ms: ${rows.message ?? JSON.stringify(rows)}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
