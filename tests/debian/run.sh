#!/usr/bin/env bash
# run.sh SUITE COMMAND: run COMMAND, a line of shell, in a copy of this checkout on a fresh Debian of that suite (bookworm, trixie).
#
# The Debian has git, make and python3, like the machine that the README describes, and is removed at the end. It is made
# once (debootstrap, a minute) and unpacked for each run. It has mounts, processes and /run of its own, and this machine's
# network. Needs root and debootstrap.
set -euo pipefail
suite=$1 command=$2
checkout=$(cd "$(dirname "$0")/../.." && pwd)
archive=${XDG_CACHE_HOME:-$HOME/.cache}/metadata_wsgi/debian-$suite.tar
sources=(/etc/apt/sources.list.d/*.sources /etc/apt/sources.list)
# A comment may name a snapshot of the archive, which has other paths.
mirror=$(cat "${sources[@]}" 2>/dev/null | grep -v '^ *#' | grep -oE 'https?://[^ ]+/debian/?' | head -n 1 || true)
work=$(mktemp -d "${TMPDIR:-/tmp}/debian-$suite.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
if [ ! -s "$archive" ]; then
    debootstrap --variant=minbase --include=git,make,python3,ca-certificates "$suite" "$work/new" \
        "${mirror:-http://deb.debian.org/debian}" >&2
    cp /etc/apt/apt.conf.d/* "$work/new/etc/apt/apt.conf.d/" 2>/dev/null || true
    mkdir -p "$(dirname "$archive")"
    tar -C "$work/new" -cf "$archive.$$" . && mv "$archive.$$" "$archive"
    rm -rf "$work/new"
fi
root=$work/root
mkdir -p "$root/srv/checkout"
tar -C "$root" -xpf "$archive"
chmod 755 "$work" "$root"
git -C "$checkout" ls-files -z --cached --others --exclude-standard | tar -C "$checkout" --null -T - -cf - |
    tar -C "$root/srv/checkout" -xf - --no-same-owner
# Name servers and certificates of this machine, which may be behind a proxy.
for file in /etc/resolv.conf /etc/hosts /etc/ssl/certs/ca-certificates.crt; do cp -fL "$file" "$root$file"; done
unshare --mount --pid --fork --kill-child bash -c '
    set -e
    root=$1
    mount --make-rprivate /
    mount --bind "$root" "$root"
    mount -t proc proc "$root/proc"
    mount --rbind /sys "$root/sys"
    mount --rbind /dev "$root/dev"
    mount -t tmpfs tmpfs "$root/run"
    # Its root for good, not a chroot: a program that enters a namespace of mounts must find it there too.
    cd "$root" && mkdir -p mnt/old && pivot_root . mnt/old && cd / && umount -l /mnt/old
    cd /srv/checkout
    pass=(); for name in "${!PIP_@}" "${!METADATA_WSGI_@}" http_proxy https_proxy no_proxy CI; do
        [ -z "${!name:-}" ] || pass+=("$name=${!name}")
    done
    exec env -i HOME=/root LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        PIP_CERT=/etc/ssl/certs/ca-certificates.crt "${pass[@]}" bash -c "$2"
' _ "$root" "$command"
