# What the other scripts need on a bare Debian 12: packages, found again quickly when they are there. Sourced, not run.

# Packages that oCore itself needs on a server, and those that only building and testing need.
SERVER_PACKAGES=(postgresql git openssh-client python3 python3-venv xfsprogs util-linux nftables ca-certificates procps fontconfig wkhtmltopdf fonts-dejavu-core fonts-noto-cjk)
# What Python packages without a ready wheel are compiled with.
SERVER_PACKAGES+=(build-essential pkg-config python3-dev libldap-dev libsasl2-dev)
BUILD_PACKAGES=(build-essential pkg-config)
TEST_PACKAGES=(curl jq btrfs-progs openssh-server)

say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }
fail() { printf '%s\n' "$*" >&2; exit 1; }

need_root_on_debian() {
  [ "$(id -u)" = 0 ] || fail "Run this as root: oCore makes users, mounts its pool and starts processes for them."
  [ -r /etc/debian_version ] || fail "This script knows Debian 12. On another system install by hand: docs/install.md lists what is needed."
  command -v cargo >/dev/null || fail "Rust is not there. Install it (rustup, 1.95 or newer), then run this again."
}

install_packages() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  say "Installing ${missing[*]}"
  # The package would start a cluster of its own, which nobody needs.
  if [[ " ${missing[*]} " == *" postgresql "* ]]; then
    mkdir -p /etc/postgresql-common
    [ -e /etc/postgresql-common/createcluster.conf ] || echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.conf
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq || fail "apt-get update failed: check the network and /etc/apt."
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null || fail "apt-get could not install ${missing[*]}; run it by hand to see why."
}
