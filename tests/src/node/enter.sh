# shellcheck shell=sh
# Runs a command where a RabbitMQ release is installed.
# $1: root directory of the installation, or ""; $2: data directory; $3: yes in a private mount namespace.
set -eu
root=$1 data=$2 private=$3
shift 3
if [ "$private" = yes ]; then
    # RabbitMQ looks up the machine's own name at some connections; without it they stall for 5 s.
    mount --bind "$data/hosts" "$root/etc/hosts"
fi
if [ -n "$root" ]; then
    mount -t proc proc "$root/proc"
    mount --bind "$data" "$root/mnt"
    set -- chroot "$root" "$@"
fi
exec "$@"
