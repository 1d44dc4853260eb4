// The certificates that Strimzi would make: one authority for the brokers, one for the users, PEM files throughout.

import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import path from "node:path";

/** An authority of this name in `folder`. */
export function authority(folder, name) {
  const [key, certificate] = [path.join(folder, `${name}.key`), path.join(folder, `${name}.crt`)];
  openssl("req", "-x509", ...newKey(key), "-days", "2", "-subj", `/O=io.strimzi/CN=${name}`, "-out", certificate);
  return { folder, key, certificate };
}

/**
 * A certificate for `commonName`, signed by an authority: the paths of the key and the certificate. With -1 day, it expired
 * yesterday.
 */
export function sign(signer, commonName, names = [], days = 1) {
  const [key, certificate] = ["key", "crt"].map((end) => path.join(signer.folder, `${commonName}.${end}`));
  const request = path.join(signer.folder, `${commonName}.csr`);
  const extensions = path.join(signer.folder, `${commonName}.ext`);
  writeFileSync(extensions, names.length > 0 ? `subjectAltName=${names.join(",")}\n` : "basicConstraints=CA:FALSE\n");
  openssl("req", ...newKey(key), "-subj", `/CN=${commonName}`, "-out", request);
  const signedBy = ["-CA", signer.certificate, "-CAkey", signer.key, "-CAcreateserial"];
  openssl("x509", "-req", "-in", request, ...signedBy, "-days", `${days}`, "-extfile", extensions, "-out", certificate);
  return { key, certificate };
}

function newKey(file) {
  return ["-newkey", "rsa:2048", "-nodes", "-keyout", file];
}

function openssl(...args) {
  execFileSync("openssl", args, { stdio: ["ignore", "ignore", "pipe"] });
}
