#!/usr/bin/env bash
# copy-secrets.sh ENVIRONMENT NAMESPACE: copies, or renews, the Secrets with which a release connects to the Kafka of this
# folder: the CA of the brokers' certificates, and the client certificate of KafkaUser herald-ENVIRONMENT. Strimzi creates and
# renews both in namespace kafka; a pod can mount only Secrets of its own namespace, and reads them only at start.
set -euo pipefail
[ $# = 2 ] || { echo "usage: $0 ENVIRONMENT NAMESPACE" >&2 && exit 2; }
namespace=$2

copy() { # SECRET NEW_NAME KEY...
  local secret=$1 name=$2 key template manifest
  shift 2
  template="{apiVersion: v1, kind: Secret, metadata: {name: $name, labels: {app.kubernetes.io/part-of: herald}}, data: {"
  for key in "$@"; do template+="\"$key\": \"{{index .data \"$key\"}}\", "; done
  manifest=$(kubectl -n kafka get secret "$secret" -o "go-template=$template}}") || exit 1
  [[ $manifest != *"<no value>"* ]] || { echo "secret $secret in namespace kafka lacks one of: $*" >&2 && exit 1; }
  kubectl -n "$namespace" apply -f - <<< "$manifest"
}

copied=$(copy my-cluster-cluster-ca-cert my-cluster-cluster-ca-cert ca.crt)
copied+=$'\n'$(copy "herald-$1" herald-kafka-user user.crt user.key)
echo "$copied"
if grep -q configured <<< "$copied"; then
  kubectl -n "$namespace" rollout restart deployment -l app.kubernetes.io/part-of=herald
fi
