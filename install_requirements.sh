#!/usr/bin/env bash
# install_requirements.sh [--local] [--dry-run]: installs what Herald needs and this machine lacks: Rust, a C compiler, make,
# perl and curl; for a cluster minikube, kubectl and helm, into ~/.local/bin or $HERALD_BIN. It can be run again at any time.
# --local: without what only a cluster needs. --dry-run: shows the commands and runs none. Exit code 3: what a cluster needs
# cannot be had, the rest is there. What minikube runs in is your choice: https://minikube.sigs.k8s.io/docs/drivers
set -euo pipefail
minikube=v1.38.1
kubectl=v1.34.4
helm=v4.3.1

fail() {
  echo "$1" >&2
  exit "${2-1}"
}

local=no
dry_run=no
for option; do
  case $option in
    --local) local=yes ;;
    --dry-run) dry_run=yes ;;
    *) fail "unknown option $option; there are --local and --dry-run" 2 ;;
  esac
done

bin=${HERALD_BIN:-$HOME/.local/bin}
users_path=$PATH
PATH=$bin:$PATH:${CARGO_HOME:-$HOME/.cargo}/bin

has() { command -v "$1" > /dev/null; }

# run COMMAND: shows a command line, then runs it.
run() {
  echo "$ $1"
  if [ $dry_run = no ]; then
    bash -o pipefail -c "$1"
  fi
}

# How this system installs packages, and what it calls the static C library.
sudo=
if [ "$(id -u)" != 0 ]; then
  sudo='sudo '
fi
install=
no_installer="Unsupported OS: $OSTYPE"
libc=libc.a
case $OSTYPE in
  linux*)
    no_installer='Neither apt-get nor dnf is here: install these yourself'
    if has apt-get; then
      install="${sudo}apt-get update && ${sudo}apt-get install -y"
      libc=libc6-dev
    elif has dnf; then
      install="${sudo}dnf install -y"
      libc=glibc-static
    fi
    ;;
  darwin*)
    no_installer='Homebrew is needed: https://brew.sh'
    if has brew; then
      install='brew install'
    fi
    ;;
  msys* | cygwin* | win32*) fail 'On Windows run this in WSL: https://learn.microsoft.com/windows/wsl/install' ;;
  *) fail "$no_installer" ;;
esac

# packages NAME…
packages() {
  if [ -z "$install" ]; then
    fail "$no_installer (missing: $*)"
  fi
  run "$install $*"
}

# What building needs.
lacks=()
if [[ $OSTYPE == darwin* ]]; then
  # There is always a cc; without the command line tools it only opens a window.
  xcode-select -p > /dev/null 2>&1 || fail 'A C compiler is needed: xcode-select --install'
elif ! has cc; then
  lacks+=(gcc)
fi
if ! has make; then
  lacks+=(make)
fi
# OpenSSL's build uses modules that the smallest perl does not have.
if ! perl -MFindBin -MIPC::Cmd -MTime::Piece -e 1 2> /dev/null; then
  lacks+=(perl)
fi
if ! has curl; then
  lacks+=(curl)
fi
if [ ${#lacks[@]} != 0 ]; then
  packages "${lacks[@]}"
fi
# rust-toolchain.toml names the version; rustup fetches it at the first build.
if ! has rustup; then
  rust='RUSTUP_INIT_SKIP_PATH_CHECK=yes sh -s -- -y --profile minimal --default-toolchain none'
  run "curl --proto '=https' --tlsv1.2 -fs https://sh.rustup.rs | $rust" ||
    fail 'cannot install Rust from https://sh.rustup.rs: see whether this machine is on the internet, and run this again'
fi
if [ $local = yes ]; then
  exit
fi

# What a cluster needs.
lacks=()
# On Linux an image is made of one static binary; elsewhere a container engine builds it.
if [[ $OSTYPE == linux* && $(cc -print-file-name=libc.a 2> /dev/null) != /* ]]; then
  lacks+=("$libc")
fi
# `kubectl diff` runs it.
if ! has diff; then
  lacks+=(diffutils)
fi
if [ ${#lacks[@]} != 0 ]; then
  (packages "${lacks[@]}") || exit 3
fi

new=
trap 'rm -rf "$new"' EXIT
installed=no

# fetch NAME URL UNPACK…: installs a program into $bin when what lies at URL has the checksum that is published beside it.
fetch() {
  local name=$1 url=$2 why published sum
  local unpack=("${@:3}")
  echo "$ curl -fL $url | ${unpack[*]} > $bin/$name"
  if [ $dry_run = yes ]; then
    return
  fi
  if [ -z "$new" ]; then
    # Each run has a folder of its own, on the same disk.
    new=$({ mkdir -p "$bin" && mktemp -d "$bin/.new.XXXXXX"; } 2> /dev/null) ||
      fail "cannot write into $bin: name another folder with HERALD_BIN" 3
  fi
  why=$(curl -fsSL --connect-timeout 10 -o "$new/sum" "$url.sha256" 2>&1) || fail "cannot fetch $url.sha256: $why" 3
  curl -fL# --connect-timeout 10 -o "$new/download" "$url" || fail "cannot fetch $url" 3
  published=$(< "$new/sum")
  if has sha256sum; then
    sum=$(sha256sum < "$new/download")
  else
    sum=$(shasum -a 256 < "$new/download")
  fi
  if [ "${sum%% *}" != "${published%% *}" ]; then
    fail "the checksum of $url is not the published one: $name is not installed" 3
  fi
  "${unpack[@]}" < "$new/download" > "$new/$name"
  chmod +x "$new/$name"
  mv "$new/$name" "$bin/$name"
  installed=yes
}

os=${OSTYPE%%[!a-z]*}
machine=$(uname -m)
case $machine in
  x86_64) machine=amd64 ;;
  aarch64) machine=arm64 ;;
esac
if ! has minikube; then
  fetch minikube "https://github.com/kubernetes/minikube/releases/download/$minikube/minikube-$os-$machine" cat
fi
if ! has kubectl; then
  fetch kubectl "https://dl.k8s.io/release/$kubectl/bin/$os/$machine/kubectl" cat
fi
found=$(helm version --short 2> /dev/null) || found=
if [[ ! $found =~ ^v([4-9]|[1-9][0-9]) ]]; then
  if [ -n "$found" ]; then
    echo "helm $found is too old: \`helm upgrade\` of version 4 is relied upon"
  fi
  fetch helm "https://get.helm.sh/helm-$helm-$os-$machine.tar.gz" tar -xzOf - "$os-$machine/helm"
fi
if [ $installed = yes ] && [[ :$users_path: != *:$bin:* ]]; then
  echo "add $bin to your PATH, to use what is installed there by hand"
fi
