#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Before the package is removed: its services end and are disabled. Before an upgrade the services run on, until the new
# version restarts them; only the byte code is removed.
# Called by dpkg with "remove" or "upgrade", by rpm with 0 (removal) or 1 (upgrade).
set -e

# rpm installs the byte code of the new version before it calls this with 1.
remove_byte_code() {
    find /usr/lib/metadata-wsgi -depth -type d -name __pycache__ -exec rm -rf {} +
}

case "$1" in
remove | 0) ;;
upgrade)
    remove_byte_code
    exit 0
    ;;
*) exit 0 ;;
esac

units='metadata-wsgi-watch.service quantum-metadata-agent.service quantum-ns-metadata-proxy.service metadata-wsgi-keeper.service'
attached=$(/usr/bin/metadata-wsgi attached -f value -c id 2>/dev/null | grep -c . || true)
if [ "${attached:-0}" -gt 0 ]; then
    echo "metadata-wsgi: $attached routers or networks are attached, and nothing serves them any more. Their rules stay." \
        "To remove the rules, install the package again and run: metadata-wsgi detach --all" >&2
fi
if [ -d /run/systemd/system ]; then
    systemctl stop $units || true
fi
if command -v systemctl >/dev/null; then
    systemctl --quiet disable $units || true
fi
# Programs that were started without systemd. Those in a container have another root directory, and are the container's.
root=$(stat -Lc %d:%i /)
for directory in /proc/[0-9]*; do
    [ "$(stat -Lc %d:%i "$directory/root/" 2>/dev/null)" = "$root" ] || continue
    program=$(tr '\0' '\n' 2>/dev/null <"$directory/cmdline" | head -n 1) || continue
    case "$program" in
    /usr/lib/metadata-wsgi/bin/python3*) kill -TERM "${directory#/proc/}" 2>/dev/null || true ;;
    esac
done
remove_byte_code
