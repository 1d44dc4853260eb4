#!/usr/bin/env bash
# install_requirements.sh [--dry-run]: installs what building Herald needs and this machine lacks: Rust, a C compiler, make
# and perl. --dry-run shows the commands and runs none. It can be run again at any time.
set -euo pipefail

has() { command -v "$1" > /dev/null; }
run() {
  echo "$ $1"
  [ "${dry_run-}" ] || bash -c "$1"
}
fail() {
  echo "$1" >&2
  exit 1
}
[ "${1-}" != --dry-run ] || dry_run=yes
[ "$(id -u)" = 0 ] || sudo='sudo '
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin

case $OSTYPE in
  linux*) if has apt-get; then install="${sudo-}apt-get update && ${sudo-}apt-get install -y"; elif has dnf; then install="${sudo-}dnf install -y"; fi ;;
  darwin*) if has brew; then install='brew install'; else missing='Homebrew is needed: https://brew.sh'; fi ;;
  msys* | cygwin* | win32*) fail 'On Windows run this in WSL: https://learn.microsoft.com/windows/wsl/install' ;;
  *) fail "Unsupported OS: $OSTYPE" ;;
esac

packages=()
has cc || packages+=(gcc)
has make || packages+=(make)
# OpenSSL's build uses modules that the smallest perl does not have.
perl -MFindBin -MIPC::Cmd -MTime::Piece -e 1 2> /dev/null || packages+=(perl)
has curl || packages+=(curl)
if [ ${#packages[@]} -gt 0 ]; then
  [ "${install-}" ] || fail "${missing-Unsupported OS: $OSTYPE} (missing: ${packages[*]})"
  run "$install ${packages[*]}"
fi
# rust-toolchain.toml names the version; rustup fetches it at the first build.
has rustup || run "curl --proto '=https' --tlsv1.2 -fsS https://sh.rustup.rs | RUSTUP_INIT_SKIP_PATH_CHECK=yes sh -s -- -y --profile minimal --default-toolchain none"
