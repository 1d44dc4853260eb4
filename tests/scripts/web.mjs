// The release addresses of the tools, as a fake curl finds them.

import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";

export const addresses = {
  minikube: "https://github.com/kubernetes/minikube/releases/download/v1.38.1/minikube-linux-amd64",
  kubectl: "https://dl.k8s.io/release/v1.34.4/bin/linux/amd64/kubectl",
  helm: "https://get.helm.sh/helm-v4.3.1-linux-amd64.tar.gz",
};

/** A curl that knows the files in `folder`, by the last part of their address. */
export const curl = (folder) => `
while [ $# -gt 1 ]; do [ "$1" != -o ] || out=$2; shift; done
[ -e "${folder}/\${1##*/}" ] || { echo "curl: (6) Could not resolve host" >&2; exit 6; }
cat "${folder}/\${1##*/}" > "\${out-/dev/stdout}"`;

/** A folder with the three releases and their checksums, each published in another form. */
export function releases(t, bash) {
  const folder = mkdtempSync(join(tmpdir(), "herald-web-"));
  t.after(() => rmSync(folder, { recursive: true }));
  const program = (path, says) => {
    writeFileSync(path, `#!${bash}\necho ${says}\n`);
    chmodSync(path, 0o755);
  };
  program(join(folder, basename(addresses.minikube)), "minikube");
  program(join(folder, basename(addresses.kubectl)), "kubectl");
  mkdirSync(join(folder, "linux-amd64"));
  program(join(folder, "linux-amd64/helm"), "v4.3.1+g1234567");
  const archive = basename(addresses.helm);
  spawnSync("tar", ["-czf", archive, "linux-amd64"], { cwd: folder });
  const publish = (name, form) => {
    const sum = createHash("sha256").update(readFileSync(join(folder, name))).digest("hex");
    writeFileSync(join(folder, `${name}.sha256`), form(sum));
  };
  publish(basename(addresses.minikube), (sum) => `${sum}\n`);
  publish(basename(addresses.kubectl), (sum) => sum);
  publish(archive, (sum) => `${sum}  ${archive}\n`);
  return folder;
}
