// Tokens of clients, signed by node, and the keys that they are verified with.

import { createHmac, generateKeyPairSync, sign } from "node:crypto";
import { writeFileSync } from "node:fs";

const encode = (value) => Buffer.from(typeof value === "string" ? value : JSON.stringify(value)).toString("base64url");

const pairs = {
  RS256: generateKeyPairSync("rsa", { modulusLength: 2048 }),
  ES256: generateKeyPairSync("ec", { namedCurve: "P-256" }),
  EdDSA: generateKeyPairSync("ed25519"),
};

/** The keys of somebody else. */
const others = { EdDSA: generateKeyPairSync("ed25519") };

export const ALGORITHMS = Object.keys(pairs);

/** In PEM, one after the other. */
export const publicKeys = Object.values(pairs)
  .map(({ publicKey }) => publicKey.export({ type: "spki", format: "pem" }))
  .join("");

/** As a JWKS, each with its name. */
export const publicKeySet = JSON.stringify({
  keys: Object.entries(pairs).map(([alg, { publicKey }]) => ({ ...publicKey.export({ format: "jwk" }), kid: alg, alg, use: "sig" })),
});

const inSeconds = (seconds) => Math.floor(Date.now() / 1000) + seconds;

/** Claims for an hour, unless `more` says otherwise; those that it makes undefined are left out. */
export function claims(more = {}) {
  return { sub: "somebody", aud: "herald", exp: inSeconds(3600), ...more };
}

/** A token with these claims. */
export function token(payload, algorithm = "EdDSA", keys = pairs, header = {}) {
  const signed = `${encode({ alg: algorithm, typ: "JWT", ...header })}.${encode(payload)}`;
  const key = keys[algorithm].privateKey;
  const signature = sign(algorithm === "EdDSA" ? null : "sha256", Buffer.from(signed), { key, dsaEncoding: "ieee-p1363" });
  return `${signed}.${signature.toString("base64url")}`;
}

/** Tokens that nobody should accept, whatever they allow: by what is wrong with them. */
export const wrong = (allowed) => ({
  "no token": undefined,
  "no JWT": "abc",
  "a token of another key": token(claims(allowed), "EdDSA", others),
  "a token for another audience": token(claims({ ...allowed, aud: "another" })),
  "a token without an audience": token(claims({ ...allowed, aud: undefined })),
  "a token of another issuer": token(claims({ ...allowed, iss: "another" })),
  "a token that requires what nobody knows": token(claims(allowed), "EdDSA", pairs, { crit: ["b"], b: 1 }),
  "an expired token": token(claims({ ...allowed, exp: inSeconds(-1) })),
  "a token that never expires": token(claims({ ...allowed, exp: undefined })),
  "a token that expires at a text": token(claims({ ...allowed, exp: `${inSeconds(3600)}` })),
  "a token that is not valid yet": token(claims({ ...allowed, nbf: inSeconds(60) })),
  "a token that is not signed": `${encode({ alg: "none", typ: "JWT" })}.${encode(claims(allowed))}.`,
  "a token signed with the public key as a secret": withPublicKey(claims(allowed)),
  "a token whose claims were changed": token(claims({})).replace(/\.[^.]+\./, `.${encode(claims(allowed))}.`),
  "a revoked token": token(claims({ ...allowed, jti: "revoked" })),
});

function withPublicKey(payload) {
  const signed = `${encode({ alg: "HS256", typ: "JWT" })}.${encode(payload)}`;
  return `${signed}.${createHmac("sha256", publicKeys).update(signed).digest("base64url")}`;
}

/** Writes the files of the options, and returns these. */
export function accessOptions(folder, keys = publicKeys) {
  writeFileSync(`${folder}/keys`, keys);
  writeFileSync(`${folder}/revoked`, "revoked\n");
  return ["--jwt-keys", `${folder}/keys`, "--jwt-revoked", `${folder}/revoked`, "--jwt-cookie", "__Host-herald"];
}
