#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# After the installation or an upgrade: user, directories, byte code; on an upgrade the services that run are restarted.
# Nothing is enabled or started. Called by dpkg with "configure [FORMER VERSION]", by rpm with 1 (installation) or 2.
set -e

is_upgrade=
case "$1" in
configure) [ -z "$2" ] || is_upgrade=1 ;;
2) is_upgrade=1 ;;
abort-*) exit 0 ;;
esac

# The user of the workers: by sysusers.d where systemd is installed, else the same by hand.
if command -v systemd-sysusers >/dev/null; then
    systemd-sysusers metadata-wsgi.conf
elif ! getent passwd metadata-wsgi >/dev/null; then
    useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin \
        --comment 'OpenStack metadata path' metadata-wsgi
fi

# Its time and size are in the byte code: files that a former version left are not used.
/usr/lib/metadata-wsgi/bin/python3 -W ignore -m compileall -q -j 0 \
    "$(/usr/lib/metadata-wsgi/bin/python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" || true

[ -d /run/systemd/system ] || exit 0
systemctl daemon-reload
systemd-tmpfiles --create metadata-wsgi.conf || true
[ -n "$is_upgrade" ] || exit 0
# One after the other, each has started before the next stops: the keeper holds the sockets of the workers, and the
# workers those of the keeper. A service that does not run is not started.
for unit in metadata-wsgi-keeper quantum-ns-metadata-proxy quantum-metadata-agent metadata-wsgi-watch; do
    if systemctl --quiet is-active "$unit.service"; then
        if command -v deb-systemd-invoke >/dev/null; then
            deb-systemd-invoke restart "$unit.service" || echo "$unit did not restart: systemctl status $unit" >&2
        else
            systemctl restart "$unit.service" || echo "$unit did not restart: systemctl status $unit" >&2
        fi
    fi
done
