# SPDX-License-Identifier: Apache-2.0
"""A fresh Debian with a running systemd, in namespaces of its own: to install packages in.

``debootstrap`` makes it once for each suite, with the programs that our package depends on, and keeps it in
``~/.cache/metadata_wsgi``. A machine is a copy of it. It has a network with a loopback interface only, so nothing can
be downloaded there. As in ``systemd_machine``: /sys and /proc/sys are read-only, except /proc/sys/net, which is that of
its network namespace; devices are its own.
"""

import os
import shutil
import subprocess
from pathlib import Path

from tests.netns.systemd_machine import MOUNT_DEVICES, START_SYSTEMD, SystemdMachine

CACHE = Path(os.environ.get('METADATA_WSGI_DEBIAN_DIR', Path.home() / '.cache' / 'metadata_wsgi' / 'debian'))
INCLUDE = 'systemd,systemd-sysv,python3,iproute2,iptables,curl,passwd'

BOOT = (
    r"""
set -eu
root=$2
mount --make-rslave /
mount --bind "$root" "$root"
cd "$root"
mount -t tmpfs -o mode=755 tmpfs run
mkdir -p run/netns run/lock old
mount -t tmpfs -o mode=1777 tmpfs tmp
"""
    + MOUNT_DEVICES
    + r"""
mount --bind proc/sys/net old
mount -o bind,ro proc/sys proc/sys
mount --move old proc/sys/net
if [ -e proc/sysrq-trigger ]; then mount -o bind,ro proc/sysrq-trigger proc/sysrq-trigger; fi
pivot_root . old
cd /
umount -l /old
rmdir /old
mount --make-rshared /
"""
    + START_SYSTEMD
)


def missing_requirements():
    """Why no Debian can be made here, as text; None if it can."""
    if os.geteuid() != 0:
        return 'only root can make a Debian'
    missing = [
        name for name in ('debootstrap', 'unshare', 'nsenter', 'setpriv', 'pivot_root') if not shutil.which(name)
    ]
    return f'{", ".join(missing)} is not installed' if missing else None


def make_debian(suite, directory):
    """Unpack a fresh Debian of that suite in ``directory``, made first if it is not in the cache.

    In memory: dpkg waits for the disk after each of ten thousand files. ``remove_debian`` removes it.
    """
    tarball = CACHE / f'{suite}.tar'
    if not tarball.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        made = CACHE / f'{suite}.new'
        shutil.rmtree(made, ignore_errors=True)
        subprocess.run(
            ['debootstrap', '--variant=minbase', f'--include={INCLUDE}', suite, made, *_mirror()],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        subprocess.run(['tar', '-C', made, '-cf', CACHE / f'{suite}.tar.new', '.'], check=True)
        (CACHE / f'{suite}.tar.new').rename(tarball)
        shutil.rmtree(made)
    directory.mkdir(parents=True)
    subprocess.run(['mount', '-t', 'tmpfs', '-o', 'mode=755,size=3g', 'tmpfs', directory], check=True)
    subprocess.run(['tar', '-C', directory, '-xpf', tarball], check=True)
    return directory


def remove_debian(directory):
    """Remove what ``make_debian`` has made."""
    subprocess.run(['umount', '--lazy', directory], check=True)
    directory.rmdir()


def _mirror():
    """The mirror of this machine, if it is a Debian."""
    for path in ('/etc/apt/sources.list.d/debian.sources', '/etc/apt/sources.list'):
        if os.path.exists(path):
            for line in Path(path).read_text().splitlines():
                words = line.split()
                if len(words) > 1 and words[0] in ('URIs:', 'deb'):
                    return [words[1]]
    return []


def run_in(directory, *argv):
    """Run a program in the Debian without its systemd, as in the build of a container image; a CompletedProcess."""
    script = (
        'mount --make-rprivate /; mount --bind "$0" "$0"; cd "$0"; mount -t proc proc proc; mount -t tmpfs tmpfs run; '
        'mount -t tmpfs tmpfs dev; mknod -m 666 dev/null c 1 3; mknod -m 666 dev/urandom c 1 9; exec chroot . "$@"'
    )
    words = ['unshare', '--mount', '--pid', '--net', '--fork', '--kill-child', 'sh', '-ec', script, directory, *argv]
    return subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False, timeout=600, env=ENVIRON
    )


ENVIRON = {
    'PATH': '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin', 'HOME': '/root', 'LANG': 'C.UTF-8',
    'DEBIAN_FRONTEND': 'noninteractive',
}  # fmt: skip


class DebianMachine(SystemdMachine):
    """A running Debian of that suite in the network namespace ``network``."""

    boot = BOOT

    def __init__(self, suite, directory, network):
        self._directory = directory
        self._network = network
        self.root = self.skeleton = make_debian(suite, directory / 'debian')
        self._cgroup = None
        self._process = None

    def sh(self, script, check=True, timeout_s=600):
        """Run a shell script as root; returns its output, of both kinds."""
        environ = [f'{name}={value}' for name, value in ENVIRON.items()]
        done = self.run('env', '-i', *environ, 'sh', '-c', f'exec 2>&1; {script}', timeout_s=timeout_s)
        assert not check or done.returncode == 0, f'$ {script}\n{done.stdout}\n{self.text()}'
        return done.stdout

    def text(self):
        """The journal, for the message of a failed test."""
        return self.sh('journalctl --no-pager -n 100', check=False)
