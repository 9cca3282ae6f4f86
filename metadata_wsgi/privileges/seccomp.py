# SPDX-License-Identifier: Apache-2.0
"""The filter of system calls, as a program for the kernel's packet filter machine (seccomp(2)). Pure.

A list of what is refused, not of what is allowed: Python and its libraries may use a new harmless call
any day, and a worker must not end for it. Refused with EPERM, so that it shows as an ordinary error:

- starting another program, entering or making a namespace, mounting, and files by handle;
- looking into another process: ptrace, its memory, its descriptors;
- the kernel's rarely walked parts, where the ways up have been found: bpf, io_uring, userfaultfd,
  performance counters, keys, modules, and sockets of families that nobody here speaks.

Facts: a number means another call on another architecture, so a foreign one is refused as a whole, and
with it x32 (x86-64 numbers from 0x40000000 on). ``clone3`` has its flags in memory, where a filter cannot
look; told that it is not there (ENOSYS) the C library takes ``clone``, whose flags are in a register.
"""

from __future__ import annotations

import errno
import struct

# Offsets in struct seccomp_data, <linux/seccomp.h>.
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
# <linux/bpf_common.h>: load a word, jump on equal, greater or equal, a common bit; return.
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000

X86_64, AARCH64 = 'x86_64', 'aarch64'
AUDIT = {X86_64: 0xC000003E, AARCH64: 0xC00000B7}
"""AUDIT_ARCH_* of the architectures whose numbers are known here, by the names that uname gives."""
_COLUMN = {X86_64: 0, AARCH64: 1}
_X32 = 0x40000000

CLONE_NEW = 0x7E020080
"""Every CLONE_NEW* flag, CLONE_NEWTIME among them."""
FAMILIES = (1, 2, 10, 16)
"""AF_UNIX, AF_INET, AF_INET6, and AF_NETLINK, by which the C library finds out which families there are."""

_CLONE, _CLONE3, _SOCKET = (56, 220), (435, 435), (41, 198)
SECCOMP = (317, 277)

# name: (x86_64, aarch64), <asm/unistd.h>.
REFUSED = {
    'execve': (59, 221), 'execveat': (322, 281),
    'setns': (308, 268), 'unshare': (272, 97), 'chroot': (161, 51), 'pivot_root': (155, 41),
    'mount': (165, 40), 'umount2': (166, 39), 'move_mount': (429, 429), 'open_tree': (428, 428),
    'fsopen': (430, 430), 'fsconfig': (431, 431), 'fsmount': (432, 432), 'fspick': (433, 433),
    'mount_setattr': (442, 442), 'open_by_handle_at': (304, 265), 'fanotify_init': (300, 262),
    'ptrace': (101, 117), 'process_vm_readv': (310, 270), 'process_vm_writev': (311, 271),
    'pidfd_getfd': (438, 438), 'kcmp': (312, 272),
    'bpf': (321, 280), 'perf_event_open': (298, 241), 'userfaultfd': (323, 282),
    'io_uring_setup': (425, 425), 'io_uring_enter': (426, 426), 'io_uring_register': (427, 427),
    'keyctl': (250, 219), 'add_key': (248, 217), 'request_key': (249, 218),
    'init_module': (175, 105), 'finit_module': (313, 273), 'delete_module': (176, 106),
    'kexec_load': (246, 104), 'kexec_file_load': (320, 294), 'reboot': (169, 142),
    'swapon': (167, 224), 'swapoff': (168, 225), 'acct': (163, 89), 'quotactl': (179, 60),
    'settimeofday': (164, 170), 'clock_settime': (227, 112), 'clock_adjtime': (305, 266), 'adjtimex': (159, 171),
    'personality': (135, 92), 'syslog': (103, 116),
}  # fmt: skip


def program(machine: str) -> bytes:
    """The filter for ``machine``, one of ``AUDIT``: an array of struct sock_filter."""
    column = _COLUMN[machine]
    refuse = _step(_RETURN, _ERRNO | errno.EPERM)
    steps = [_step(_LOAD, _ARCHITECTURE), _step(_EQUAL, AUDIT[machine], 1, 0), refuse, _step(_LOAD, _NUMBER)]
    if machine == X86_64:
        steps += [_step(_AT_LEAST, _X32, 0, 1), refuse]
    for numbers in REFUSED.values():
        steps += [_step(_EQUAL, numbers[column], 0, 1), refuse]
    steps += [_step(_EQUAL, _CLONE3[column], 0, 1), _step(_RETURN, _ERRNO | errno.ENOSYS)]
    clone = [_step(_LOAD, _FIRST_ARGUMENT), _step(_ANY_BIT, CLONE_NEW, 0, 1), refuse, _step(_RETURN, _ALLOW)]
    steps += [_step(_EQUAL, _CLONE[column], 0, len(clone)), *clone]
    opened = [_step(_LOAD, _FIRST_ARGUMENT)]
    for family in FAMILIES:
        opened += [_step(_EQUAL, family, 0, 1), _step(_RETURN, _ALLOW)]
    opened += [_step(_RETURN, _ERRNO | errno.EAFNOSUPPORT)]
    steps += [_step(_EQUAL, _SOCKET[column], 0, len(opened)), *opened]
    return b''.join([*steps, _step(_RETURN, _ALLOW)])


def _step(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One struct sock_filter; a jump skips that many steps."""
    return struct.pack('=HBBI', code, if_true, if_false, operand)
