#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# After the removal. A purge (dpkg) removes what the services have written too. The user metadata-wsgi stays, as Debian's
# custom is: another user with its number would own files that are still somewhere. "userdel metadata-wsgi" removes it.
# Called by dpkg with "remove", "purge" or "upgrade", by rpm with 0 (removal) or 1 (upgrade).
set -e

case "$1" in
remove | purge | 0)
    # Byte code; and, of an rpm, the directories.
    rm -rf /usr/lib/metadata-wsgi
    rmdir --ignore-fail-on-non-empty /etc/metadata_wsgi 2>/dev/null || true
    ;;
esac
case "$1" in
purge)
    # The state directory may be that of Quantum's agents, too: only our files, and the directories if they are empty.
    if cd /var/lib/quantum 2>/dev/null; then
        rm -f keeper listeners metadata_proxy shared_proxy attaching starting_shared_proxy ./*.lock report-*.txt
        rm -rf holders
        # Links of another user are not followed.
        if [ ! -h external ] && [ ! -h external/pids ]; then
            rm -f external/pids/*.pid external/pids/*.pid.haproxy
        fi
        cd /
        rmdir --ignore-fail-on-non-empty /var/lib/quantum/external/pids /var/lib/quantum/external /var/lib/quantum \
            2>/dev/null || true
    fi
    rm -rf /run/metadata_wsgi /var/log/metadata_wsgi
    ;;
esac
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
fi
