// An example of signing in: it asks for a name and a password, and puts a token into a cookie, which browsers then send to Herald's pages.
// node examples/sign-in.mjs [PORT]     with the secret of `cargo xtask token` and `./setup.sh --secure`, target/token-keys.json
import { createHash, createHmac, randomUUID, timingSafeEqual } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";

const PORT = Number(process.argv[2] ?? 8090);
const KEYS = process.env.TOKEN_KEYS ?? new URL("../target/token-keys.json", import.meta.url);

// Who may do what. Replace this by your own: OpenID Connect, a directory, a table of salted hashes (scrypt), with a limit of attempts.
const USERS = {
  ada: { password: "lovelace", read: ["*"], write: ["*"] },
  grace: { password: "hopper", read: ["topic/dev-topic"], write: [] },
};

const COOKIE = "__Host-herald"; // tokens.cookie of the chart, --jwt-cookie of the services
const SECONDS = 3600;

const key = Buffer.from(JSON.parse(readFileSync(KEYS, "utf8")).keys[0].k, "base64url");
const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");

function token(name) {
  const { read, write } = USERS[name];
  const exp = Math.floor(Date.now() / 1000) + SECONDS;
  const signed = `${part({ alg: "HS256", typ: "JWT" })}.${part({ sub: name, aud: "herald", exp, jti: randomUUID(), read, write })}`;
  return `${signed}.${createHmac("sha256", key).update(signed).digest("base64url")}`;
}

function knows(name, password) {
  const known = Object.hasOwn(USERS, name);
  const [given, expected] = [password, known ? USERS[name].password : ""].map((text) => createHash("sha256").update(text).digest());
  return timingSafeEqual(given, expected) && known;
}

// Secure and __Host-: no other host can set it. HttpOnly: no script reads it. SameSite: no page of another site sends it.
const cookie = (value, seconds) => `${COOKIE}=${value}; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age=${seconds}`;

const HEADERS = {
  "content-type": "text/html; charset=utf-8",
  "cache-control": "no-store",
  "content-security-policy": "default-src 'none'; form-action 'self'; frame-ancestors 'none'",
};

const escaped = (text) => text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);

const page = (said) => `<!doctype html><html lang="en"><meta charset="utf-8"><meta name="color-scheme" content="light dark"><title>Sign in</title>
<p role="status">${escaped(said)}</p>
<form method="post"><p><label>Name <input name="name" autocomplete="username" required></label>
<p><label>Password <input name="password" type="password" autocomplete="current-password" required></label>
<p><button>Sign in</button> <button name="out" value="yes" formnovalidate>Sign out</button></form>`;

async function handle(request, response) {
  const answer = (status, said, headers = {}) => response.writeHead(status, { ...HEADERS, ...headers }).end(page(said));
  if (request.method !== "POST") return answer(200, "");
  // Only from this page; ORIGIN is its address for browsers, where that is another one.
  if (request.headers.origin !== (process.env.ORIGIN ?? `http://localhost:${server.address().port}`)) return answer(403, "That came from another page.");
  let body = "";
  for await (const chunk of request) if ((body += chunk).length > 1000) return response.destroy();
  const form = new URLSearchParams(body);
  const name = form.get("name") ?? "";
  // The browser forgets its token, which stays valid until it expires: --jwt-revoked takes one back by its jti.
  if (form.has("out")) return answer(200, "You are signed out.", { "set-cookie": cookie("", 0) });
  if (!knows(name, form.get("password") ?? "")) return answer(403, "The name or the password is wrong.");
  answer(200, `Signed in as ${name} for an hour.`, { "set-cookie": cookie(token(name), SECONDS) });
}

// A client that goes away in the middle of its request ends nothing else.
const server = createServer((request, response) => handle(request, response).catch(() => response.destroy()));
server.listen(PORT, "127.0.0.1", () => console.log(`sign in at http://localhost:${server.address().port}`));
