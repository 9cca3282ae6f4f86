# SPDX-License-Identifier: Apache-2.0
"""Drops the privileges of a worker: user, capabilities and system calls. The process cannot undo this.

Facts: capabilities, no_new_privs and a seccomp filter belong to a thread. A worker has one thread when it calls
``drop``, and later threads inherit from this thread. The kernel resets ``dumpable`` when the user changes, so
``dumpable`` is set after this change. To empty the bounding set, a process needs CAP_SETPCAP, so the set is emptied
before the change of the user.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import resource

from metadata_wsgi.errors import MetadataError
from metadata_wsgi.privileges import seccomp
from metadata_wsgi.privileges.identity import Identity

LOG = logging.getLogger(__name__)

# <linux/prctl.h>, <linux/capability.h>, <linux/seccomp.h>
_SET_DUMPABLE, _CAPBSET_DROP, _SET_NO_NEW_PRIVS, _CAP_AMBIENT, _AMBIENT_CLEAR_ALL = 4, 24, 38, 47, 4
_CAPABILITY_VERSION_3 = 0x20080522
_MODE_FILTER, _ALL_THREADS = 1, 1
_LAST_CAPABILITY = 63

_LIBC = ctypes.CDLL(None, use_errno=True)


def drop(identity: Identity | None) -> None:
    """Drop all privileges. If ``identity`` is not None, switch to it. Raises MetadataError if the kernel refuses."""
    try:
        _empty_bounding_set()
        if identity is not None:
            _switch_user(identity)
        _clear_capabilities()
        _prctl(_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)
        _prctl(_SET_NO_NEW_PRIVS, 1)
        # Neither a core file nor a debugger of the same user may read the memory of this process.
        _prctl(_SET_DUMPABLE, 0)
        no_core_files()
        _install_seccomp_filter()
    except OSError as error:
        raise MetadataError(f'a worker cannot drop its privileges, so it does not serve: {error}') from error


def no_core_files() -> None:
    """Disable core files, because they would contain the secrets."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _switch_user(identity: Identity) -> None:
    os.setgroups(identity.groups)
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)


def _empty_bounding_set() -> None:
    for capability in range(_LAST_CAPABILITY + 1):
        try:
            _prctl(_CAPBSET_DROP, capability)
        except OSError as error:
            # EPERM: not root. Then no_new_privs prevents the process from getting any capability of the set.
            # EINVAL: the previous capability was the last one of this kernel.
            if error.errno not in (errno.EPERM, errno.EINVAL):
                raise
            return


def _clear_capabilities() -> None:
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    held = (ctypes.c_uint32 * 6)()
    _check(_LIBC.capget(header, held))
    # Without capabilities capset is not needed. The seccomp filter of a systemd unit may forbid capset.
    if any(held):
        _check(_LIBC.capset(header, (ctypes.c_uint32 * 6)()))


def _install_seccomp_filter() -> None:
    machine = os.uname().machine
    if machine not in seccomp.AUDIT_ARCH:
        LOG.warning('System calls are not filtered: the filter does not support the architecture %s', machine)
        return
    instructions = seccomp.bpf_program(machine)

    class Program(ctypes.Structure):
        _fields_ = (('length', ctypes.c_ushort), ('instructions', ctypes.c_char_p))

    number = seccomp.SECCOMP_SYSCALL[machine == seccomp.AARCH64]
    program = Program(len(instructions) // 8, instructions)
    try:
        thread = _LIBC.syscall(number, _MODE_FILTER, _ALL_THREADS, ctypes.byref(program))
        _check(thread)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EINVAL):
            raise
        LOG.warning('System calls are not filtered: this kernel was built without seccomp filters')
        return
    if thread:
        raise OSError(errno.EBUSY, f'thread {thread} has another filter')


def _prctl(option: int, argument: int) -> None:
    zeros = [ctypes.c_ulong(0)] * 3
    _check(_LIBC.prctl(option, ctypes.c_ulong(argument), *zeros))


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
