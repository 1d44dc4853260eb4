#!/usr/bin/env bash
# setup.sh [--local] [ENV…]: makes this machine ready and starts Herald's environments (default, dev, prod; all when none is
# named). Returns when their pages answer, and prints where they are. It can be run again at any time.
# --local: in one process on this machine, which is all there is today.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

case ${1-} in
  -h | --help)
    sed -n 's/^# //p' setup.sh
    exit
    ;;
  --local) shift ;;
  -*)
    echo "unknown option $1; see ./setup.sh --help" >&2
    exit 2
    ;;
esac

./install_requirements.sh
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"

echo "All environments run in one process on this machine, with a broker inside it."
cargo xtask local --background "$@"
