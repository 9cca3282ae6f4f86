# SPDX-License-Identifier: Apache-2.0
"""Become that user, and let go of the rest. What is done here cannot be undone in this process.

Facts: capabilities, no_new_privs and a filter are a thread's, and a worker has one thread when it drops;
those that come later inherit. ``dumpable`` is reset whenever the user changes, so it comes after. The bounding set can
only be emptied by who may still do so, so it comes before.
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
    """Give up everything, and become ``identity`` unless it is None. MetadataError when the kernel refuses."""
    try:
        _empty_bounding_set()
        if identity is not None:
            _become(identity)
        _capabilities_none()
        _prctl(_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)
        _prctl(_SET_NO_NEW_PRIVS, 1)
        # No core file and no debugger of the same user may see what is in this memory.
        _prctl(_SET_DUMPABLE, 0)
        no_core_files()
        _filter()
    except OSError as error:
        raise MetadataError(f'a worker cannot give its privileges up, and does not serve: {error}') from error


def no_core_files() -> None:
    """A core file would have the secrets in it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _become(identity: Identity) -> None:
    os.setgroups(identity.groups)
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)


def _empty_bounding_set() -> None:
    for capability in range(_LAST_CAPABILITY + 1):
        try:
            _prctl(_CAPBSET_DROP, capability)
        except OSError as error:
            # EPERM: not root, and no_new_privs keeps what is in the set from ever being had.
            # EINVAL: the last one this kernel knows was the one before.
            if error.errno not in (errno.EPERM, errno.EINVAL):
                raise
            return


def _capabilities_none() -> None:
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    held = (ctypes.c_uint32 * 6)()
    _check(_LIBC.capget(header, held))
    # Asked first: where there is nothing to give up a service's own filter may refuse the call.
    if any(held):
        _check(_LIBC.capset(header, (ctypes.c_uint32 * 6)()))


def _filter() -> None:
    machine = os.uname().machine
    if machine not in seccomp.AUDIT:
        LOG.warning('System calls are not filtered: their numbers on %s are not known here', machine)
        return
    steps = seccomp.program(machine)

    class Program(ctypes.Structure):
        _fields_ = (('length', ctypes.c_ushort), ('steps', ctypes.c_char_p))

    number = seccomp.SECCOMP[machine == seccomp.AARCH64]
    program = Program(len(steps) // 8, steps)
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
