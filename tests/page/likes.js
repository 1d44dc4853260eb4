/** Likes as a client of the original sends them. Shared by the folders that test it. */

/** The two videos that the original is tried out with. */
export const VIDEOS = ["93f98662-8907-4f43-bb4c-280501481046", "69e7266c-753e-4ed3-b7fc-9035133a293f"];

/**
 * Likes a video, and resolves with what is answered. `base` is the address of the API, `http://host:port` or, as the original's page
 * has it, `http://host:port/dev`.
 */
export async function like(base, id) {
  const response = await fetch(`${base}/videos/${encodeURIComponent(id)}/likes`, { method: "POST" });
  return answer(response);
}

/** The videos, `[{unique_identifier, title}]`. */
export async function metadata(base) {
  return answer(await fetch(`${base}/videos/metadata`));
}

async function answer(response) {
  const text = await response.text();
  if (response.status !== 200) throw new Error(`${response.url}: ${response.status} ${text}`);
  return JSON.parse(text);
}
