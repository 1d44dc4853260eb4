// From the repository: the users of k8s/strimzi, and the options of a release that goes with them.

import { execFileSync, spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";

import kafkajs from "kafkajs";
import { parseAllDocuments } from "yaml";

const { AclOperationTypes, AclPermissionTypes, AclResourceTypes, ResourcePatternTypes } = kafkajs;
const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../../..");

const ALL = ["--set", "gateway.enabled=true,projector.enabled=true,counts.enabled=true,counts.feed.enabled=true,likes.enabled=true,rooms.enabled=true"];

/** The KafkaUsers: one for each environment, and one for each service of prod. */
export const users = documents(readFileSync(path.join(root, "k8s/strimzi/users.yaml"), "utf8"));
export const services = documents(readFileSync(path.join(root, "k8s/strimzi-scram/users.yaml"), "utf8"));

/** The ACLs of a KafkaUser, as Strimzi's user operator hands them to Kafka. */
export function acls({ metadata, spec }) {
  const prefix = spec.authentication.type === "tls" ? "CN=" : "";
  return spec.authorization.acls.flatMap(({ type = "allow", host = "*", resource, operations }) =>
    operations.map((operation) => ({
      principal: `User:${prefix}${metadata.name}`,
      host,
      resourceType: AclResourceTypes[constant(resource.type)],
      resourceName: resource.name,
      resourcePatternType: ResourcePatternTypes[resource.patternType === "prefix" ? "PREFIXED" : "LITERAL"],
      operation: AclOperationTypes[constant(operation)],
      permissionType: AclPermissionTypes[constant(type)],
    })),
  );
}

/** DescribeConfigs is DESCRIBE_CONFIGS. */
function constant(name) {
  return name.replace(/(?<=[a-z])(?=[A-Z])/g, "_").toUpperCase();
}

/** The options of a release with all services in an environment, as the chart writes them into its ConfigMap. */
export function options(environment, folder = "k8s/strimzi") {
  return render(environment, folder).find(({ kind, data }) => kind === "ConfigMap" && data.KAFKA_TOPIC).data;
}

/** The names of the topics that such a release declares. */
export function topics(environment) {
  return render(environment, "k8s/strimzi").filter(({ kind }) => kind === "KafkaTopic").map(({ spec }) => spec.topicName);
}

/** The manifests of such a release, with the values of a folder. */
function render(environment, folder) {
  const release = environment === "default" ? "hello-world" : `hello-world-${environment}`;
  const own = environment === "default" ? [] : ["-f", path.join(root, `helm/values-${environment}.yaml`)];
  const ours = ["-f", path.join(root, folder, "values.yaml")];
  const args = ["template", release, path.join(root, "helm"), "-n", environment, ...own, ...ours, ...ALL];
  return documents(execFileSync("helm", args, { encoding: "utf8" }));
}

function documents(text) {
  return parseAllDocuments(text).map((document) => document.toJS()).filter(Boolean);
}

/** Why the chart's values cannot be had, or false. */
export function withoutHelm() {
  const why = spawnSync("helm", ["version"], { stdio: "ignore" }).status !== 0 && "helm is not installed";
  if (why && process.env.CI === "true") {
    throw new Error(why);
  }
  return why;
}
