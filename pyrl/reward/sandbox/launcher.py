"""Builds the sandbox around itself and runs one role in it: `python -I -S launcher.py CHANNEL_FD`.

Own mount, pid, network, ipc, uts and user namespace. The root is a tmpfs that holds the interpreter's standard library
and the libraries that its extensions need, read-only, /dev/null, /dev/zero and /dev/urandom, and /scratch. The role is
process 1 of its pid namespace: when it ends, or this process does, everything in there is killed by the kernel.

- Root: mounts are made by root itself, so that nothing inside may change them. Then process 1 gets a user namespace in
  which it is a user of no account, drawn for this run: the limit on processes, which does not hold for root, holds.
- Others: the user namespace comes first, and gives the right to mount.

A process whose root is not that of its mount namespace cannot make user namespaces: hence the last `chroot`.
"""

from __future__ import annotations

import os
import random
import resource
import socket
import sys
from typing import NoReturn

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import frames
import kernel
import program_side
import test_side

sys.path.pop(0)

ROLES = {"io": program_side.serve_io, "calls": program_side.serve_calls, "tests": test_side.serve}
BASE = "/proc"
"""Mount point of the new root, in this mount namespace alone: a folder that is always there and never a source."""
JAIL = "/jail"
INSIDE_ID = 1000
OUTSIDE_IDS = (1 << 30, (1 << 30) + (1 << 29))
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")


def main() -> None:
    channel = socket.socket(fileno=int(sys.argv[1]))
    request = frames.receive(channel)
    try:
        if request["isolated"]:  # by bubblewrap
            kernel.drop_privileges()
            _serve(request, channel)
        kernel.die_with_parent()
        if os.getppid() != request["parent"]:
            sys.exit(1)
        _sandbox(request, channel)
    except OSError as error:
        frames.send(channel, {"error": str(error)})
        sys.exit(1)


def _sandbox(request: dict, channel: socket.socket) -> None:
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    spaces = kernel.NEW_MOUNTS | kernel.NEW_PIDS | kernel.NEW_NETWORK | kernel.NEW_IPC | kernel.NEW_UTS
    is_root = os.geteuid() == 0
    if is_root:
        kernel.unshare(spaces)
    else:
        user, group = os.geteuid(), os.getegid()
        kernel.unshare(spaces | kernel.NEW_USER)
        _map_ids(proc, "self", user, group)
    _build_root(request)
    own, childs = socket.socketpair()
    child = os.fork()
    if child == 0:
        own.close()
        os.close(proc)
        _process_one(request, channel, childs, is_root)
    childs.close()
    channel.close()
    if is_root:
        own.recv(1)
        outside = random.SystemRandom().randrange(*OUTSIDE_IDS)
        _map_ids(proc, str(child), outside, outside)
    own.send(b"g")
    os.waitpid(child, 0)


def _map_ids(proc: int, process: str, user: int, group: int) -> None:
    maps = (("setgroups", "deny"), ("uid_map", f"{INSIDE_ID} {user} 1"), ("gid_map", f"{INSIDE_ID} {group} 1"))
    for name, text in maps:
        file = os.open(f"{process}/{name}", os.O_WRONLY, dir_fd=proc)
        os.write(file, text.encode())
        os.close(file)


def _build_root(request: dict) -> None:
    kernel.mount("none", "/", None, kernel.RECURSIVE | kernel.PRIVATE)
    kernel.mount("tmpfs", BASE, "tmpfs", kernel.NO_SUID | kernel.NO_DEV, "size=1m,mode=755")
    jail = BASE + JAIL
    for path in request["visible"]:
        _make_like(path, jail + path)
        kernel.bind_read_only(path, jail + path)
    for path in request["hidden"]:
        kernel.mount("tmpfs", jail + path, "tmpfs", kernel.READ_ONLY | kernel.NO_SUID | kernel.NO_DEV, "size=4k")
    for path in DEVICES:
        _make_like(path, jail + path)
        kernel.mount(path, jail + path, None, kernel.BIND)
    os.makedirs(jail + "/scratch")
    size = f"size={request['scratch_bytes']},nr_inodes={request['scratch_files']},mode=777"
    kernel.mount("tmpfs", jail + "/scratch", "tmpfs", kernel.NO_SUID | kernel.NO_DEV, size)
    kernel.mount("none", BASE, None, kernel.REMOUNT | kernel.BIND | kernel.READ_ONLY | kernel.NO_SUID | kernel.NO_DEV)
    kernel.enter_root(BASE)


def _make_like(source: str, target: str) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))


def _process_one(request: dict, channel: socket.socket, parent: socket.socket, is_root: bool) -> None:
    try:
        if is_root:
            os.setgroups([])
            kernel.unshare(kernel.NEW_USER)
            parent.send(b"r")
        if parent.recv(1) != b"g":
            os._exit(1)
        os.setresgid(INSIDE_ID, INSIDE_ID, INSIDE_ID)
        os.setresuid(INSIDE_ID, INSIDE_ID, INSIDE_ID)
        os.chroot(JAIL)
        os.chdir("/scratch")
        kernel.drop_privileges()
        kernel.die_with_parent()
        _end_if_orphaned(parent)
        os.setsid()
        _serve(request, channel)
    except OSError as error:
        frames.send(channel, {"error": str(error)})
        os._exit(1)


def _serve(request: dict, channel: socket.socket) -> NoReturn:
    """Run the role, as process 1 of what is a sandbox by now. Raises OSError before it is ready."""
    _keep_only({0, 1, 2, channel.fileno(), *request["descriptors"]})
    os.environ.clear()
    for name, value in request["limits"].items():
        kernel.limit(getattr(resource, name), value)
    frames.send(channel, {"ready": True})
    sys.argv = ["program.py"]
    try:
        ROLES[request["role"]](channel, request)
    finally:
        os._exit(1)


def _end_if_orphaned(parent: socket.socket) -> None:
    """The launcher may have died before the kernel was asked to tell."""
    parent.setblocking(False)
    try:
        if parent.recv(1) == b"":
            os._exit(1)
    except BlockingIOError:
        return


def _keep_only(descriptors: set[int]) -> None:
    for low, high in zip([-1, *sorted(descriptors)], [*sorted(descriptors), 1 << 16], strict=True):
        if low + 1 < high:  # closerange(0, 0) closes everything
            os.closerange(low + 1, high)


if __name__ == "__main__":
    main()
