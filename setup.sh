#!/usr/bin/env bash
# setup.sh [--local [--fresh] | --secure | --kafka HOST:PORT] [ENV…]: makes this machine ready and starts Herald's environments (default, dev, prod;
# all when none is named) on minikube. Returns when their pages answer, and prints where they are. It can be run again at any time.
# --local: in one process on this machine, with a broker inside it, as where no cluster is available. --fresh deletes its sessions first.
# --kafka: with a Kafka that runs already; HOST:PORT is its address for a pod in the cluster.
# --secure: on minikube, with TLS, and a token required from every client (docs/security.md).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
export PATH="${HERALD_BIN:-$HOME/.local/bin}:${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
trap 'exit 130' INT

# Ends what was started in the other mode, which holds the ports. A port-forward is listed with its environment, `local` without.
end() { if grep -Eqs "$1" port_forward_pids.txt; then ./kill_port_forward.sh; fi; }

cluster=yes up=(up)
case ${1-} in
  -h | --help) sed -n '2,6s/^# //p' setup.sh && exit ;;
  --local)
    shift
    ./install_requirements.sh --local
    cluster=no
    ;;
  --kafka)
    [ -n "${2-}" ] || { echo "--kafka needs HOST:PORT; see ./setup.sh --help" >&2 && exit 2; }
    up+=(--kafka "$2")
    shift 2
    ;;
  --secure)
    up+=(--secure)
    shift
    ;;
  -*) echo "unknown option $1; see ./setup.sh --help" >&2 && exit 2 ;;
esac

if [ $cluster = yes ]; then
  { ./install_requirements.sh && cargo xtask "${up[@]}" "$@" && code=0; } || code=$?
  if [ "$code" = 0 ]; then
    end '^[0-9]+$'
    exec cargo xtask forward --background "$@"
  fi
  # With an option, one process with a broker inside would be something else than was meant.
  if [ "$code" != 3 ] || [ ${#up[@]} != 1 ]; then
    exit "$code"
  fi
  echo "Without a cluster everything runs in one process on this machine, as with --local."
fi
end '^[0-9]+ .'
cargo xtask-local --background "$@"
