#!/usr/bin/env bash
# setup.sh [--local] [ENV…]: makes this machine ready and starts Herald's environments (default, dev, prod; all when none is
# named) on minikube. Returns when their pages answer, and prints where they are. It can be run again at any time.
# --local: in one process on this machine, with a broker inside it, as is done where no cluster can be had.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
export PATH="${HERALD_BIN:-$HOME/.local/bin}:${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
trap 'exit 130' INT

# What was started in the other way holds the ports. In the list a port-forward has its environment beside it, `local` has none.
end() { if grep -Eqs "$1" port_forward_pids.txt; then ./kill_port_forward.sh; fi; }

case ${1-} in
  -h | --help) sed -n '2,4s/^# //p' setup.sh && exit ;;
  --local) shift && ./install_requirements.sh --local ;;
  -*) echo "unknown option $1; see ./setup.sh --help" >&2 && exit 2 ;;
  *)
    { ./install_requirements.sh && cargo xtask up "$@" && code=0; } || code=$?
    [ "$code" != 0 ] || { end '^[0-9]+$' && exec cargo xtask forward --background "$@"; }
    [ "$code" = 3 ] || exit "$code"
    echo "Without a cluster everything runs in one process on this machine, as with --local."
    ;;
esac
end '^[0-9]+ .'
cargo xtask local --background "$@"
