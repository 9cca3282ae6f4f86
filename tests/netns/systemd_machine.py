# SPDX-License-Identifier: Apache-2.0
"""Boots a systemd in namespaces of its own, as process 1, with only the units of etc/systemd.

A boot clears temporary files, writes kernel settings and makes devices. The host must not be changed by that, so the
root is a tmpfs. Programs, interpreter and checkout of the host are mounted read-only. The host's units, generators and
tmpfiles rules are hidden. Before systemd starts, the script checks every mount again: a writable mount that is not
part of the new root aborts the boot.

::

    /                  tmpfs; /etc, /var and /opt/bin come from ``skeleton``
    /usr               of the host, read-only, without /usr/lib/systemd/system and the like
    /opt/python, /opt/packages, /opt/checkout      interpreter, libraries and checkout, read-only
    /run/netns         of the host, follows its changes
    /dev, /proc, /sys  its own; /proc/sys read-only
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import uuid
from pathlib import Path

from tests.e2e.conftest import eventually

CHECKOUT = Path(__file__).parent.parent.parent
UNITS = CHECKOUT / 'etc' / 'systemd'
USER, NEUTRON = 61234, 61236
TARGETS = ('sysinit', 'basic', 'multi-user', 'network-online', 'shutdown')
PROGRAMS = {
    'metadata-wsgi': 'main',
    'quantum-metadata-agent': 'agent',
    'neutron-metadata-agent-wsgi': 'neutron_agent',
    'quantum-ns-metadata-proxy': 'namespace_proxy',
}

_BASE = os.path.realpath(sys.base_prefix)
INTERPRETER = Path('/opt/python') / Path(os.path.realpath(sys.executable)).relative_to(_BASE)

ENTER_CGROUP = 'echo $$ > "$1/cgroup.procs"; shift; exec "$@"'
MOUNT_DEVICES = r"""
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for node in 'null 3' 'zero 5' 'full 7' 'random 8' 'urandom 9'; do mknod -m 666 "dev/${node% *}" c 1 "${node#* }"; done
mknod -m 666 dev/tty c 5 0
touch dev/kmsg
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
"""
"""In the new root: devices, /proc, /sys and the cgroups of a machine of its own."""

START_SYSTEMD = r"""
exec setpriv --bounding-set=-sys_module,-sys_time,-sys_rawio,-sys_boot,-syslog,-wake_alarm \
    env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system \
    --log-target=kmsg --show-status=no --crash-reboot=no
"""

BOOT = (
    r"""
set -eu
root=$1 skeleton=$2 python=$3 packages=$4 checkout=$5
mount --make-rslave /
mount -t tmpfs -o mode=755 tmpfs "$root"
cp -a "$skeleton/." "$root"
cd "$root"
for name in bin sbin lib lib32 lib64 libx32; do
    if [ -L "/$name" ]; then cp -P "/$name" .
    elif [ -d "/$name" ]; then mkdir "$name"; mount -o bind,ro "/$name" "$name"; fi
done
mkdir -p usr old dev proc sys run tmp root var/tmp opt/python opt/packages opt/checkout
chmod 1777 tmp var/tmp
mount -o bind,ro /usr usr
mount -o bind,ro "$python" opt/python
mount -o bind,ro "$packages" opt/packages
mount -o bind,ro "$checkout" opt/checkout
for name in systemd/system systemd/system-generators systemd/system-preset tmpfiles.d sysctl.d sysusers.d; do
    if [ -d "usr/lib/$name" ]; then mount -t tmpfs -o ro tmpfs "usr/lib/$name"; fi
    if [ -d "lib/$name" ] && [ ! -L lib ]; then mount -t tmpfs -o ro tmpfs "lib/$name"; fi
done
ldconfig -r "$root"
mount -t tmpfs -o mode=755 tmpfs run
mkdir -p run/netns run/lock
mount -o rbind,ro /run/netns run/netns
"""
    + MOUNT_DEVICES
    + r"""
mount -o bind,ro proc/sys proc/sys
if [ -e proc/sysrq-trigger ]; then mount -o bind,ro proc/sysrq-trigger proc/sysrq-trigger; fi
pivot_root . old
cd /
umount -l /old
rmdir /old
while read -r _ where _ options _; do
    case ",$options," in *,ro,*) continue;; esac
    case "$where" in
    /|/dev|/dev/pts|/proc|/run|/sys/fs/cgroup|/run/netns/*) ;;
    *) echo "$where could be written to" >&2; exit 1;;
    esac
done < /proc/self/mounts
[ "$(stat -f -c %T /)" = tmpfs ]
mount --make-rshared /
"""
    + START_SYSTEMD
)


def missing_requirements():
    """Why systemd cannot boot here, as text; None if it can."""
    if not os.access('/lib/systemd/systemd', os.X_OK):
        return 'systemd is not installed'
    missing = [name for name in ('unshare', 'nsenter', 'setpriv', 'pivot_root') if not shutil.which(name)]
    if missing:
        return f'{", ".join(missing)} is not installed'
    if _cgroups() is None:
        return 'no cgroup2 is mounted'
    return None


class BootError(Exception):
    """systemd could not boot: the kernel or the container does not allow it."""


class SystemdMachine:
    """A machine whose network is the namespace ``network``; /run/netns is that of the host.

    ``conf`` is the text of /etc/metadata_wsgi/metadata_agent.ini; ``files`` (name -> text) are put beside it.
    """

    interpreter = INTERPRETER
    boot = BOOT

    def __init__(self, directory: Path, network: str, conf: str, files: dict[str, str]) -> None:
        self._directory = directory
        self._network = network
        self.skeleton = directory / 'skeleton'
        self._cgroup = None
        self._process = None
        _fill_skeleton(self.skeleton, conf, files)

    def start(self):
        cgroup = _cgroups() / f'metadata-wsgi-{uuid.uuid4()}'
        try:
            cgroup.mkdir()
        except OSError as error:
            raise BootError(str(error)) from None
        self._cgroup = cgroup
        root = self._directory / 'root'
        root.mkdir()
        self._log = self._directory / 'boot.log'
        argv = [
            'sh', '-c', ENTER_CGROUP, 'sh', self._cgroup,
            'nsenter', f'--net=/run/netns/{self._network}',
            'unshare', '--pid', '--fork', '--kill-child', '--mount', '--cgroup', '--uts', '--ipc',
            'sh', '-c', self.boot, 'sh', root, self.skeleton, sys.base_prefix, sysconfig.get_path('purelib'), CHECKOUT,
        ]  # fmt: skip
        with self._log.open('wb') as log:
            self._process = subprocess.Popen([str(word) for word in argv], stdout=log, stderr=log)
        try:
            eventually(lambda: self._process.poll() is not None or self._is_up(), 'systemd is up', within_s=90)
        except AssertionError as error:
            raise BootError(f'{error}: {self._log.read_text()}') from None
        if self._process.poll() is not None:
            raise BootError(self._log.read_text())
        return self

    def _is_up(self):
        return self.run('systemctl', 'is-system-running').stdout.strip() in ('running', 'degraded')

    def run(self, *argv, check=False, timeout_s=60):
        """Run a program in the machine as root; a CompletedProcess with text."""
        children = Path(f'/proc/{self._process.pid}/task/{self._process.pid}/children').read_text().split()
        if not children:
            return subprocess.CompletedProcess(argv, 1, '', 'systemd is not running yet')
        enter = ['nsenter', '--target', children[0], '--mount', '--pid', '--net', '--uts', '--ipc', '--cgroup', '--']
        done = subprocess.run(
            [*enter, *(str(word) for word in argv)], capture_output=True, text=True, check=False, timeout=timeout_s
        )
        assert not check or done.returncode == 0, (argv, done.stdout, done.stderr, self.text())
        return done

    def systemctl(self, *words):
        return self.run('systemctl', *words, check=True).stdout

    def show_property(self, unit, name):
        """The value of a unit's property."""
        return self.systemctl('show', '--value', '--property', name, unit).strip()

    def metadata_wsgi(self, *words, check=True):
        return self.run('/opt/bin/metadata-wsgi', *words, check=check)

    def text(self):
        """The logs of systemd and the programs, for the message of a failed test."""
        return self.run('sh', '-c', 'tail -n 60 /dev/kmsg /var/log/*.log').stdout

    def stop(self):
        """Kill all processes of the machine and delete its cgroup."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
        if self._cgroup is not None:
            eventually(lambda: _removed(self._cgroup), 'every process has ended')


def _removed(cgroup):
    try:
        for directory, _, _ in os.walk(cgroup, topdown=False):
            os.rmdir(directory)
    except OSError:
        return False
    return True


def _cgroups():
    for line in Path('/proc/self/mounts').read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == 'cgroup2':
            return Path(where)
    return None


def _fill_skeleton(skeleton, conf, files):
    etc, bin_ = skeleton / 'etc', skeleton / 'opt' / 'bin'
    units = etc / 'systemd' / 'system'
    ours = etc / 'metadata_wsgi'
    for made in (units, ours, bin_, skeleton / 'var' / 'lib', skeleton / 'var' / 'log'):
        made.mkdir(parents=True)
    (skeleton / 'var' / 'run').symlink_to('../run')
    (etc / 'passwd').write_text(
        'root:x:0:0::/root:/bin/sh\n'
        f'metadata-wsgi:x:{USER}:{USER}::/nonexistent:/bin/false\n'
        f'neutron:x:{NEUTRON}:{NEUTRON}::/nonexistent:/bin/false\n'
        'nobody:x:65534:65534::/nonexistent:/bin/false\n'
    )
    (etc / 'group').write_text(f'root:x:0:\nmetadata-wsgi:x:{USER}:\nneutron:x:{NEUTRON}:\nnogroup:x:65534:\n')
    (etc / 'nsswitch.conf').write_text('passwd: files\ngroup: files\nhosts: files\n')
    (etc / 'hosts').write_text('127.0.0.1 localhost\n')
    (etc / 'machine-id').write_text(f'{uuid.uuid4().hex}\n')
    (etc / 'ld.so.conf').write_text('/opt/python/lib\n' + _read('/etc/ld.so.conf'))
    for name in ('ld.so.conf.d', 'alternatives'):
        if os.path.isdir(f'/etc/{name}'):
            shutil.copytree(f'/etc/{name}', etc / name, symlinks=True)
    (ours / 'metadata_agent.ini').write_text(conf)
    # Owned by root, readable for the group of the agent.
    os.chmod(ours / 'metadata_agent.ini', 0o640)
    os.chown(ours / 'metadata_agent.ini', 0, USER)
    for name, text in files.items():
        (ours / name).write_text(text)
    for name in TARGETS:
        (units / f'{name}.target').write_text(f'[Unit]\nDescription={name}\nDefaultDependencies=no\n')
    (units / 'default.target').symlink_to('multi-user.target')
    for name, module in PROGRAMS.items():
        script = bin_ / name
        script.write_text(
            f'#!{INTERPRETER}\nimport sys\nsys.path[:0] = ["/opt/checkout", "/opt/packages"]\n'
            f'from metadata_wsgi.cli.{module} import main\nsys.exit(main())\n'
        )
        script.chmod(0o755)
    for unit in UNITS.glob('*.service'):
        shutil.copy(unit, units)
        command = next(line for line in unit.read_text().splitlines() if line.startswith('ExecStart='))
        drop_in = units / f'{unit.name}.d' / 'here.conf'
        drop_in.parent.mkdir()
        drop_in.write_text(
            '[Service]\nExecStart=\n'
            + command.replace('/opt/metadata-wsgi/bin/', '/opt/bin/')
            + f'\nStandardOutput=append:/var/log/{unit.stem}.log\nStandardError=inherit\n'
        )


def _read(path):
    try:
        return Path(path).read_text()
    except OSError:
        return ''
