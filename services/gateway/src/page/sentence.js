/** The sentence of an error response, which is text or `{"error": …}`. */
export function sentenceOf(body) {
  try {
    return JSON.parse(body).error ?? body;
  } catch {
    return body;
  }
}
