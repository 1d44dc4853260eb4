/** A private registry: what containerd needs of one to pull an image (the OCI distribution specification), for one user. */
import { execFileSync } from "node:child_process";
import { createReadStream, existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";

const MANIFEST = "application/vnd.oci.image.manifest.v1+json";

/** Serves the image in an archive of `cargo xtask images` by any name and tag, and ends with the test. `pulls` counts manifests that were read. */
export async function startRegistry(t, archive, { user, password }) {
  const folder = mkdtempSync(join(tmpdir(), "herald-registry-"));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  execFileSync("tar", ["--extract", "--file", archive, "--directory", folder]);
  const { digest } = JSON.parse(readFileSync(join(folder, "index.json"), "utf8")).manifests[0];
  const login = `Basic ${Buffer.from(`${user}:${password}`).toString("base64")}`;
  const registry = { digest, pulls: 0, rejected: 0 };
  const server = createServer(({ url, headers, method }, response) => {
    if (headers.authorization !== login) {
      registry.rejected += 1;
      return response.writeHead(401, { "www-authenticate": 'Basic realm="herald"' }).end();
    }
    if (url === "/v2/") return response.end("{}");
    const [, kind, reference] = /^\/v2\/.+\/(manifests|blobs)\/(.+)$/.exec(url) ?? [];
    const wanted = reference?.startsWith("sha256:") ? reference : digest;
    const blob = join(folder, "blobs", wanted.replace(":", "/"));
    if (!kind || !existsSync(blob)) return response.writeHead(404).end();
    if (kind === "manifests" && method === "GET") registry.pulls += 1;
    const type = kind === "manifests" ? MANIFEST : "application/octet-stream";
    response.writeHead(200, { "content-type": type, "docker-content-digest": wanted });
    if (method === "HEAD") return response.end();
    createReadStream(blob).pipe(response);
  });
  // By this name, engines connect without TLS.
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.after(() => server.close());
  registry.host = `localhost:${server.address().port}`;
  return registry;
}
