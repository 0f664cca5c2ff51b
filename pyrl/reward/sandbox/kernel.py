"""The system calls of the sandbox, by name. Standard library only: the launcher imports this without pyrl."""

from __future__ import annotations

import ctypes
import os
import resource

NEW_MOUNTS, NEW_UTS, NEW_IPC = 0x00020000, 0x04000000, 0x08000000
NEW_USER, NEW_PIDS, NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000

READ_ONLY, NO_SUID, NO_DEV = 1, 2, 4
REMOUNT, BIND, RECURSIVE, PRIVATE = 32, 4096, 16384, 1 << 18
_DETACH = 2
# statvfs flag -> mount flag: what a remount inside a user namespace must not take away.
_KEPT_FLAGS = {1: READ_ONLY, 2: NO_SUID, 4: NO_DEV, 8: 8, 1024: 1024, 2048: 2048, 4096: 1 << 21}

_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 24, 38
_CAPABILITY_VERSION_3 = 0x20080522
_SIGKILL = 9

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, call: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{call}: {os.strerror(error)}")


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags), f"unshare({flags:#x})")


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    texts = (None if text is None else os.fsencode(text) for text in (source, target, kind))
    call = f"mount({source}, {target}, {kind}, {flags:#x})"
    _check(_libc.mount(*texts, ctypes.c_ulong(flags), None if data is None else data.encode()), call)


def bind_read_only(source: str, target: str) -> None:
    """`target` exists and is of the kind of `source`."""
    mount(source, target, None, BIND)
    kept = os.statvfs(target).f_flag
    flags = sum(flag for seen, flag in _KEPT_FLAGS.items() if kept & seen) | READ_ONLY | NO_SUID | NO_DEV
    mount("none", target, None, REMOUNT | BIND | flags)


def enter_root(folder: str) -> None:
    """Make the mount point `folder` the root of this mount namespace and forget the old one."""
    os.chdir(folder)
    _check(_libc.pivot_root(b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", _DETACH), "umount2")
    os.chdir("/")


def die_with_parent() -> None:
    """SIGKILL when the parent dies; a change of user or group forgets it."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")


def drop_privileges() -> None:
    """No capability, none to be had again, and no set-user-id program gives any."""
    for capability in range(64):
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break  # the kernel knows no more
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")


def limit(kind: int, value: int) -> None:
    """Soft and hard, no higher than a hard limit that is there."""
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))
