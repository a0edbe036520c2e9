# shellcheck shell=bash
# Installs RabbitMQ 4 (Debian trixie) into a root file system of its own. Runs as root in private pid and
# mount namespaces. $1: the directory to make; $2: its name until it is complete, $1.new.SOMETHING.
set -euo pipefail
target=$1 new=$2
script=/usr/share/debootstrap/scripts/sid # what `trixie` is a link to, where debootstrap knows it
[ -e "$script" ] || { echo "debootstrap is missing: install it" >&2; exit 1; }

mkdir -p "$(dirname "$target")"
exec 9>"$target.lock"
flock 9
[ ! -e "$target" ] || exit 0     # another one built it meanwhile
rm -rf "$target".new.*           # of a machine that went down meanwhile
mkdir "$new"
log=$new/install.log

# The mirror that the host itself uses, if it is a Debian one.
mirror=$({ cat /etc/apt/sources.list /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list 2>/dev/null || :; } |
    sed -n -E 's,^(URIs:|deb( +\[[^]]*\])?) *(https?://[^ ]*/debian)/?( .*)?$,\3,p' | head -n 1)
mirror=${mirror:-http://deb.debian.org/debian}
eval "$(apt-config shell proxy Acquire::http::Proxy)"
if [ -n "${proxy:-}" ]; then export http_proxy=$proxy; fi

echo "installing RabbitMQ 4 from $mirror into $target (about a minute)"
debootstrap --variant=minbase trixie "$new" "$mirror" "$script" >"$log" 2>&1 ||
    { tail -n 20 "$log" >&2; exit 1; }
cp /etc/resolv.conf "$new/etc/"
cp /etc/hosts "$new/etc/hosts"
printf '#!/bin/sh\nexit 101\n' >"$new/usr/sbin/policy-rc.d"
chmod +x "$new/usr/sbin/policy-rc.d"
mount -t proc proc "$new/proc"
chroot "$new" sh -c 'export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq && apt-get install -y --no-install-recommends rabbitmq-server && apt-get clean' \
    >>"$log" 2>&1 || { tail -n 20 "$log" >&2; exit 1; }
rm -rf "$new"/var/lib/apt/lists/*
umount "$new/proc"
rm "$log"
mv -T "$new" "$target"
