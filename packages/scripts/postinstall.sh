#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# After the installation or an upgrade: user, directories, byte code; on an upgrade the services that run are replaced.
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

restart() {
    if command -v deb-systemd-invoke >/dev/null; then
        deb-systemd-invoke restart "$1.service" || echo "$1 did not restart: systemctl status $1" >&2
    else
        systemctl restart "$1.service" || echo "$1 did not restart: systemctl status $1" >&2
    fi
}

# At SIGUSR1 the new version starts in the running process, and the workers of the former one serve until its own do.
version=$(/usr/bin/metadata-wsgi --version)
version=${version##* }
replace() {
    # The option has its new name since systemd 252.
    systemctl kill --kill-whom=main --signal=USR1 "$1.service" 2>/dev/null ||
        systemctl kill --kill-who=main --signal=USR1 "$1.service" || return 1
    seconds=0
    while [ "$seconds" -lt 60 ]; do
        sleep 1
        seconds=$((seconds + 1))
        systemctl --quiet is-active "$1.service" || return 1
        case "$(systemctl show --value --property StatusText "$1.service")" in
        [1-9]*"workers serve, version $version"*) return 0 ;;
        esac
    done
    return 1
}

# One after the other, each has started before the next one: the keeper holds the sockets of the workers, and the workers
# those of the keeper. A service that does not run is not started.
for unit in metadata-wsgi-keeper quantum-ns-metadata-proxy quantum-metadata-agent metadata-wsgi-watch; do
    systemctl --quiet is-active "$unit.service" || continue
    case "$unit" in
    quantum-*) replace "$unit" || restart "$unit" ;;
    *) restart "$unit" ;;
    esac
done
