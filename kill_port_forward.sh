#!/usr/bin/env bash
# kill_port_forward.sh: ends what setup.sh has left running on this machine: the processes listed in port_forward_pids.txt (a
# line is a process id, and the environment when it is a port-forward), no others. The cluster goes on: cargo xtask down.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# is_ours ID ENV: whether the process runs and is the one that was listed. An id may belong to another program by now.
is_ours() {
  local line
  line=$({ tr '\0' ' ' < "/proc/$1/cmdline" || ps -ww -o args= -p "$1"; } 2> /dev/null || true)
  case "${line% } " in
    */xtask\ forward\ "${2:-?} ") ;;
    */release/local\ *) [ -z "$2" ] ;;
    *) return 1 ;;
  esac
}

if [ ! -f port_forward_pids.txt ]; then
  echo "No port-forward processes found."
  exit
fi
left=""
while read -r id environment; do
  is_ours "$id" "$environment" || continue
  echo "ending ${environment:-local} (process $id)"
  why=$(kill "$id" 2>&1) || true
  for _ in {1..150}; do
    is_ours "$id" "$environment" || continue 2
    [ -z "$why" ] || break
    sleep 0.1
  done
  if [ -z "$why" ]; then
    echo "it did not end within 15 seconds: killing it" >&2
    why=$(kill -KILL "$id" 2>&1) && continue
  fi
  echo "cannot end process $id: ${why##*: }" >&2
  left+="$id $environment"$'\n'
done < port_forward_pids.txt
if [ -n "$left" ]; then
  printf %s "$left" > port_forward_pids.txt
  exit 1
fi
rm port_forward_pids.txt
