#!/usr/bin/env bash
# kill_port_forward.sh: ends what setup.sh has left running on this machine: the processes listed in port_forward_pids.txt (a
# line is a process id, and the environment when it is a port-forward), no others. The cluster goes on: cargo xtask down.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

if [ ! -f port_forward_pids.txt ]; then
  echo "No port-forward processes found."
  exit
fi
while read -r id _; do
  # A process that has ended may have left its number to a stranger.
  program=$({ readlink "/proc/$id/exe" || ps -o comm= -p "$id"; } 2> /dev/null || true)
  program=${program% (deleted)}
  case ${program##*/} in
    local | xtask) echo "ending ${program##*/} (process $id)" ;;
    *) continue ;;
  esac
  kill "$id"
  for _ in {1..150}; do
    kill -0 "$id" 2> /dev/null || continue 2
    sleep 0.1
  done
  echo "it did not end within 15 seconds: killing it" >&2
  kill -KILL "$id"
done < port_forward_pids.txt
rm port_forward_pids.txt
