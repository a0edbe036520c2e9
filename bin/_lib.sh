# shellcheck shell=bash
# What the scripts beside it share; sourced, never run.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT" || exit 1

# Functions here report failure by their result or by `fail`: most callers are such that `set -e` is off.

# Caches outside the tree: tools, RabbitMQ 4, and in CI the build.
export MAYFLY_CACHE=${MAYFLY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mayfly}
if [ -z "${CARGO_TARGET_DIR:-}" ]; then
    if [ "${CI:-}" = true ]; then CARGO_TARGET_DIR=$MAYFLY_CACHE/target; else CARGO_TARGET_DIR=$ROOT/target; fi
fi
export CARGO_TARGET_DIR

PROGRAMS=(mayfly-scaler mayfly-worker mayfly-publisher)

say() { printf '%s\n' "$*" >&2; }

fail() {
    say "${0##*/}: $*"
    exit 1
}

# end CODE WORDS...: as `fail`, with one of the exit codes of all programs (64 usage, 69 unreachable, 75 gave up
# waiting, 78 refused).
end() {
    say "${0##*/}: ${*:2}"
    exit "$1"
}

# The comment at the top of the calling script.
usage() { sed -n '2,/^[^#]/{/^#/!d;s/^# \{0,1\}//;p}' "$0"; }

has() { command -v "$1" >/dev/null 2>&1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif has sudo; then
        sudo "$@"
    else
        fail "this needs root or sudo: $*"
    fi
}

# Installs Debian packages. $@: names.
install_packages() {
    has apt-get || fail "install these first (only Debian and Ubuntu are known here): $*"
    say "installing $*"
    # An apt that somebody else runs is waited for.
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300)
    as_root "${apt[@]}" update -qq </dev/null >&2
    as_root "${apt[@]}" install -y -qq --no-install-recommends "$@" </dev/null >&2
}

# need COMMAND PACKAGE...: installs the packages where the command is missing.
need() {
    has "$1" || install_packages "${@:2}"
    has "$1" || fail "$1 is still missing after installing ${*:2}"
}

# What every build needs.
need_rust() {
    has cargo || fail "Rust is missing: install it from https://rustup.rs (the version is in rust-toolchain.toml)"
    need cc gcc libc6-dev
}

has_rabbitmq() { compgen -G '/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server' >/dev/null; }

# install_idle PACKAGES... [-- UNITS...]: installs Debian packages such that no service starts, now or (the systemd
# units given) at the next boot.
install_idle() (
    packages=()
    while [ $# -gt 0 ] && [ "$1" != -- ]; do
        packages+=("$1")
        shift
    done
    units=("${@:2}")
    policy=/usr/sbin/policy-rc.d
    mark='# mayfly: no service starts while packages are installed'
    # Only where there is none, or one of an installation that was killed.
    if [ ! -e "$policy" ] || grep -qxF "$mark" "$policy"; then
        trap 'as_root rm -f "$policy"' EXIT
        trap 'exit 130' INT TERM HUP
        printf '#!/bin/sh\n%s\nexit 101\n' "$mark" | as_root tee "$policy" >/dev/null
        as_root chmod 755 "$policy"
    fi
    install_packages "${packages[@]}"
    if [ ${#units[@]} -gt 0 ] && has systemctl; then as_root systemctl --quiet disable "${units[@]}" >&2 || true; fi
)

# The distribution's RabbitMQ: tests and demo run nodes of their own.
need_rabbitmq() {
    has_rabbitmq && return
    local units=(rabbitmq-server.service)
    has epmd || units+=(epmd.service epmd.socket)
    install_idle rabbitmq-server -- "${units[@]}"
    has_rabbitmq || fail "rabbitmq-server is still missing"
}

# The distribution's Redis: tests run servers of their own.
need_redis() {
    has redis-server && return
    install_idle redis-server -- redis-server.service
    has redis-server || fail "redis-server is still missing"
}

has_postgres() { compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; }

# The distribution's PostgreSQL: tests run servers of their own.
need_postgres() {
    has_postgres && return
    install_idle postgresql -- postgresql.service
    has_postgres || fail "postgresql is still missing"
}

# The machine's own target, named explicitly: with crt-static, proc-macros build only beside it.
host_target() { rustc -vV | sed -n 's/^host: //p'; }

# Builds the release programs, static; prints the directory that they are in. $@: more for cargo.
build_release() {
    local target
    target=$(host_target)
    local packages=("${PROGRAMS[@]/#/--package=}")
    RUSTFLAGS="-C target-feature=+crt-static" \
        cargo build --locked --release --target "$target" "${packages[@]}" "$@" </dev/null >&2 || return 1
    printf '%s\n' "$CARGO_TARGET_DIR/$target/release"
}

# alone NAME COMMAND ARGUMENTS...: runs `COMMAND DIRECTORY ARGUMENTS...` as the only one on this machine that uses
# cluster NAME, with a directory for its files; whatever happens, that cluster is gone afterwards.
alone() (
    # A name of its own: a cluster that somebody works with is left alone.
    export MAYFLY_CLUSTER=$1
    mkdir -p "$MAYFLY_CACHE"
    exec 8>"$MAYFLY_CACHE/$MAYFLY_CLUSTER.lock"
    flock --nonblock 8 || { say "cluster $MAYFLY_CLUSTER is in use by another run on this machine" && exit 1; }
    scratch=$MAYFLY_CACHE/$MAYFLY_CLUSTER.scratch
    rm -rf "$scratch" # of a killed run
    mkdir -m 700 "$scratch"
    trap 'trap "" INT TERM HUP; bin/cluster down; rm -rf "$scratch"' EXIT
    trap 'exit 130' INT TERM HUP
    # What outlives a killed run must not hold the lock.
    "$2" "$scratch" "${@:3}" 8>&-
)

# on_control_plane NAME COMMAND...: runs the command alone with a control plane of this name.
on_control_plane() { alone "$1" with_control_plane "${@:2}"; }

# $1: a directory for its files; then the command.
with_control_plane() {
    export MAYFLY_TEST_KUBECONFIG=$1/kubeconfig
    # Of a killed run, first.
    bin/cluster down && bin/cluster up --control-plane --kubeconfig "$MAYFLY_TEST_KUBECONFIG" || return 1
    "${@:2}"
}

# step WORDS... -- COMMAND...: runs the command and tells how long it took; its failure is the step's.
step() {
    local name=() begun=$SECONDS
    while [ "$1" != -- ]; do
        name+=("$1")
        shift
    done
    shift
    say "=== ${name[*]}"
    local status=0
    "$@" || status=$?
    if [ "$status" = 0 ]; then
        say "=== ${name[*]}: $((SECONDS - begun)) s"
    else
        say "=== FAILED: ${name[*]} (after $((SECONDS - begun)) s)"
    fi
    return "$status"
}
