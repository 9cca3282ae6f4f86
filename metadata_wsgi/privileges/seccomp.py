# SPDX-License-Identifier: Apache-2.0
"""The system call filter of the workers, as a BPF program for seccomp(2).

The filter is a deny list and not an allow list. New versions of Python or of a library may use more system calls, and
a worker must not fail because of them. Denied calls fail with EPERM. The filter denies:

- starting another program, entering or creating a namespace, mounting, and opening files by handle;
- access to another process: ptrace, its memory, its descriptors;
- rarely used parts of the kernel, where privilege escalations were found: bpf, io_uring, userfaultfd, performance
  counters, keys, modules, and socket families that this package does not use (EAFNOSUPPORT instead of EPERM).

Facts:

- The same system call number means another call on another architecture. So all calls of other architectures are
  denied, x32 included (x86-64 numbers from 0x40000000 on).
- The flags of ``clone3`` are in memory, which a filter cannot read. So ``clone3`` fails with ENOSYS. Then the C library
  uses ``clone``, which has its flags in a register.
"""

from __future__ import annotations

import errno
import struct

# Offsets in struct seccomp_data, <linux/seccomp.h>.
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
# <linux/bpf_common.h>: load a word; jump if equal, if greater or equal, if a bit is set; return.
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_BIT_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000

X86_64, AARCH64 = 'x86_64', 'aarch64'
AUDIT_ARCH = {X86_64: 0xC000003E, AARCH64: 0xC00000B7}
"""AUDIT_ARCH_* of the supported architectures, by the machine name of uname(2)."""
_COLUMN = {X86_64: 0, AARCH64: 1}
_X32 = 0x40000000

CLONE_NEW = 0x7E020080
"""All CLONE_NEW* flags, including CLONE_NEWTIME. A clone() with one of them is denied."""
ALLOWED_SOCKET_FAMILIES = (1, 2, 10, 16)
"""AF_UNIX, AF_INET, AF_INET6 and AF_NETLINK. getaddrinfo of the C library lists addresses with AF_NETLINK."""

_CLONE, _CLONE3, _SOCKET = (56, 220), (435, 435), (41, 198)
SECCOMP_SYSCALL = (317, 277)

# name: (x86_64, aarch64), <asm/unistd.h>.
DENIED = {
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


def bpf_program(machine: str) -> bytes:
    """The filter for ``machine``, one of ``AUDIT_ARCH``: an array of struct sock_filter."""
    column = _COLUMN[machine]
    deny = _instruction(_RETURN, _ERRNO | errno.EPERM)
    program = [
        _instruction(_LOAD, _ARCHITECTURE),
        _instruction(_JUMP_EQUAL, AUDIT_ARCH[machine], 1, 0),
        deny,
        _instruction(_LOAD, _NUMBER),
    ]
    if machine == X86_64:
        program += [_instruction(_JUMP_GREATER_EQUAL, _X32, 0, 1), deny]
    for numbers in DENIED.values():
        program += [_instruction(_JUMP_EQUAL, numbers[column], 0, 1), deny]
    program += [_instruction(_JUMP_EQUAL, _CLONE3[column], 0, 1), _instruction(_RETURN, _ERRNO | errno.ENOSYS)]
    clone = [
        _instruction(_LOAD, _FIRST_ARGUMENT),
        _instruction(_JUMP_BIT_SET, CLONE_NEW, 0, 1),
        deny,
        _instruction(_RETURN, _ALLOW),
    ]
    program += [_instruction(_JUMP_EQUAL, _CLONE[column], 0, len(clone)), *clone]
    socket_call = [_instruction(_LOAD, _FIRST_ARGUMENT)]
    for family in ALLOWED_SOCKET_FAMILIES:
        socket_call += [_instruction(_JUMP_EQUAL, family, 0, 1), _instruction(_RETURN, _ALLOW)]
    socket_call += [_instruction(_RETURN, _ERRNO | errno.EAFNOSUPPORT)]
    program += [_instruction(_JUMP_EQUAL, _SOCKET[column], 0, len(socket_call)), *socket_call]
    return b''.join([*program, _instruction(_RETURN, _ALLOW)])


def _instruction(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One struct sock_filter. ``if_true`` and ``if_false``: number of instructions that a jump skips."""
    return struct.pack('=HBBI', code, if_true, if_false, operand)
