#!/usr/bin/env bash
# install_requirements.sh [--local] [--dry-run]: installs what Herald needs and this machine lacks: Rust, a C compiler, make,
# perl and curl; for a cluster minikube, kubectl and helm, into ~/.local/bin or $HERALD_BIN. It can be run again at any time.
# --local: without what only a cluster needs. --dry-run: shows the commands and runs none. Exit code 3: what a cluster needs
# cannot be had, the rest is there. What minikube runs in is your choice: https://minikube.sigs.k8s.io/docs/drivers
set -euo pipefail
minikube=v1.38.1 kubectl=v1.34.4 helm=v4.3.1

has() { command -v "$1" > /dev/null; }
fail() {
  echo "$1" >&2
  exit "${2-1}"
}
run() {
  echo "$ $1"
  [ "${dry_run-}" ] || bash -o pipefail -c "$1"
}
packages() {
  [ "${install-}" ] || fail "${missing-Unsupported OS: $OSTYPE} (missing: $*)"
  run "$install $*"
}
# fetch NAME URL UNPACK…: puts a program in its place when what lies at URL has the checksum that is published beside it.
fetch() {
  local why published
  echo "$ curl -fL $2 | ${*:3} > $bin/$1"
  [ ! "${dry_run-}" ] || return 0
  # Each run has a folder of its own, on the same disk.
  [ "${new-}" ] || new=$({ mkdir -p "$bin" && mktemp -d "$bin/.new.XXXXXX"; } 2> /dev/null) ||
    fail "cannot write into $bin: name another folder with HERALD_BIN" 3
  why=$(curl -fsSL --connect-timeout 10 -o "$new/sum" "$2.sha256" 2>&1) || fail "cannot fetch $2.sha256: $why" 3
  curl -fL# --connect-timeout 10 -o "$new/download" "$2" || fail "cannot fetch $2" 3
  published=$(< "$new/sum") sum=$(if has sha256sum; then sha256sum; else shasum -a 256; fi < "$new/download")
  [ "${sum%% *}" = "${published%% *}" ] || fail "the checksum of $2 is not the published one: $1 is not installed" 3
  "${@:3}" < "$new/download" > "$new/$1" && chmod +x "$new/$1" && mv "$new/$1" "$bin/$1"
}

for option; do
  case $option in --local) local=yes ;; --dry-run) dry_run=yes ;; *) fail "unknown option $option; there are --local and --dry-run" 2 ;; esac
done
[ "$(id -u)" = 0 ] || sudo='sudo '
bin=${HERALD_BIN:-$HOME/.local/bin} path=$PATH
PATH=$bin:$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
trap 'rm -rf "${new-}"' EXIT

case $OSTYPE in
  linux*) if has apt-get; then install="${sudo-}apt-get update && ${sudo-}apt-get install -y" libc=libc6-dev; elif has dnf; then install="${sudo-}dnf install -y" libc=glibc-static; fi ;;
  darwin*) if has brew; then install='brew install'; else missing='Homebrew is needed: https://brew.sh'; fi ;;
  msys* | cygwin* | win32*) fail 'On Windows run this in WSL: https://learn.microsoft.com/windows/wsl/install' ;;
  *) fail "Unsupported OS: $OSTYPE" ;;
esac

lacks=()
# On macOS there is always a cc; without the command line tools it only opens a window.
if [[ $OSTYPE == darwin* ]]; then xcode-select -p > /dev/null 2>&1 || fail 'A C compiler is needed: xcode-select --install'; else has cc || lacks+=(gcc); fi
has make || lacks+=(make)
# OpenSSL's build uses modules that the smallest perl does not have.
perl -MFindBin -MIPC::Cmd -MTime::Piece -e 1 2> /dev/null || lacks+=(perl)
has curl || lacks+=(curl)
[ ${#lacks[@]} = 0 ] || packages "${lacks[@]}"
# rust-toolchain.toml names the version; rustup fetches it at the first build.
has rustup || run "curl --proto '=https' --tlsv1.2 -fs https://sh.rustup.rs | RUSTUP_INIT_SKIP_PATH_CHECK=yes sh -s -- -y --profile minimal --default-toolchain none" ||
  fail 'cannot install Rust from https://sh.rustup.rs: see whether this machine is on the internet, and run this again'
[ ! "${local-}" ] || exit 0

lacks=()
# On Linux an image is made of one static binary; elsewhere a container engine builds it.
[[ $OSTYPE != linux* || $(cc -print-file-name=libc.a 2> /dev/null) == /* ]] || lacks+=("${libc-libc.a}")
# `kubectl diff` runs it.
has diff || lacks+=(diffutils)
[ ${#lacks[@]} = 0 ] || (packages "${lacks[@]}") || exit 3
os=${OSTYPE%%[!a-z]*} machine=$(uname -m)
machine=${machine/x86_64/amd64} machine=${machine/aarch64/arm64}
has minikube || fetch minikube "https://github.com/kubernetes/minikube/releases/download/$minikube/minikube-$os-$machine" cat
has kubectl || fetch kubectl "https://dl.k8s.io/release/$kubectl/bin/$os/$machine/kubectl" cat
old=$(helm version --short 2> /dev/null) || old=''
if [[ ! $old =~ ^v([4-9]|[1-9][0-9]) ]]; then
  [ ! "$old" ] || echo "helm $old is too old: \`helm upgrade\` of version 4 is relied upon"
  fetch helm "https://get.helm.sh/helm-$helm-$os-$machine.tar.gz" tar -xzOf - "$os-$machine/helm"
fi
[[ ! ${sum-} || :$path: == *:$bin:* ]] || echo "add $bin to your PATH, to use what is installed there by hand"
