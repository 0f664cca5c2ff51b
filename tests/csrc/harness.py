"""Builds the torch-free kernel sources (`csrc/*/*.cu`) for the host, through tests/csrc/emulation, and runs them."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import threading
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests" / "csrc"
CACHE = ROOT / "build" / "emulation"
COMPILE = ["g++", "-std=c++20", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-pthread"]
# Of a program and of its mutants alike, so that the program is the control of its mutants. Unoptimised code is compiled
# twice as fast, and keeps what an optimiser would drop as undefined; races are looked for in so much more work that the
# optimiser pays.
FLAGS = {
    "address": ["-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-O1", "-g1", "-fsanitize=thread"],
}
COVERAGE = ["--coverage", "-fprofile-update=atomic"]  # of the kernel source under "address"
# What a sanitizer or a check says that has found something; a program that does not start says none of it.
FINDINGS = {
    "address": re.compile(r"^FAILED |ERROR: AddressSanitizer|: runtime error: ", re.MULTILINE),
    "thread": re.compile(r"WARNING: ThreadSanitizer: data race"),
}
SECONDS = 300
_LOCKS: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


@dataclass(frozen=True)
class Mutation:
    """A defect, planted by replacing `old`, which `file` (under csrc) holds once, by `new`."""

    name: str
    old: str
    new: str
    file: str
    sanitizer: str = "address"


@dataclass(frozen=True)
class Program:
    """A C++ test (tests/csrc/NAME_test.cpp) of a kernel source (under csrc), and the defects it must notice."""

    name: str
    source: str
    mutations: tuple[Mutation, ...]


@dataclass(frozen=True)
class Binary:
    path: Path
    notes: Path
    """Where gcc has put what gcov needs beside the counts of a run."""


def build(program: Program, sanitizer: str, csrc: Path = ROOT / "csrc") -> Binary:
    """The program, in a folder of its own; built anew only if a file or a flag changed. `csrc` may hold a mutant, whose
    warnings, say about what it no longer uses, are let pass."""
    command = [*COMPILE, *FLAGS[sanitizer]]
    kernel = [*command, *(COVERAGE if sanitizer == "address" else [])]
    objects = [
        compile_object(kernel, csrc / program.source, csrc),
        compile_object(command, TESTS / f"{program.name}_test.cpp", csrc),
        compile_object(command, TESTS / "emulation" / "device.cpp", csrc),
    ]
    return Binary(link([*kernel, *map(str, objects)], program.name), objects[0].with_suffix(".gcno"))


def link(command: list[str], name: str) -> Path:
    digest = hashlib.sha256(" ".join(command).encode()).hexdigest()[:16]
    binary = CACHE / f"{name}-{digest}" / name
    if not binary.exists():
        binary.parent.mkdir(parents=True, exist_ok=True)
        new = Path(f"{binary}.{os.getpid()}-{threading.get_ident()}.new")
        compile_command([*command, "-o", str(new)], cwd=binary.parent)
        new.replace(binary)
    return binary


def compile_object(command: list[str], source: Path, csrc: Path) -> Path:
    includes = [f"-I{TESTS / 'emulation'}", f"-I{TESTS}", f"-I{csrc}"]
    preprocessed = compile_command([*command, *includes, "-E", "-P", "-x", "c++", str(source)], cwd=TESTS).stdout
    digest = hashlib.sha256((" ".join(command) + preprocessed).encode()).hexdigest()[:16]
    if csrc != ROOT / "csrc":
        command = [*command, "-w"]  # not in the digest: what the defect left alone is not compiled again
    target = CACHE / "objects" / digest / f"{source.stem}.o"
    complete = target.with_suffix(".complete")
    with _LOCKS[str(target)]:  # programs share objects, and two are built at a time
        if not complete.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            compile_command([*command, *includes, "-c", "-x", "c++", str(source), "-o", str(target)], cwd=TESTS)
            complete.touch()
    return target


def compile_command(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(command)} failed:\n{done.stderr}")
    return done


def run(binary: Path, counts: Path, *, stop_at_first: bool = False) -> subprocess.CompletedProcess[str]:
    """The program's coverage goes to the folder `counts`.

    Address space layout is not randomised: this compiler's ThreadSanitizer cannot place its memory otherwise.
    """
    command = [str(binary)]
    if shutil.which("setarch"):
        command = ["setarch", platform.machine(), "-R", *command]
    environment = os.environ | {
        "TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0", "GCOV_PREFIX": str(counts)
    }  # fmt: skip
    if stop_at_first:
        environment["CHECK_STOP_AT_FIRST"] = "1"
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)


def passed(done: subprocess.CompletedProcess[str]) -> bool:
    """Everything was checked, and no sanitizer found anything."""
    return done.returncode == 0 and " 0 failed" in done.stdout


def noticed(done: subprocess.CompletedProcess[str], sanitizer: str) -> bool:
    """The program failed because a check or the sanitizer found something, and not, say, since it could not start."""
    return done.returncode != 0 and bool(FINDINGS[sanitizer].search(f"{done.stdout}\n{done.stderr}"))


def mutated(mutation: Mutation, folder: Path) -> Path:
    """A copy of csrc with the defect in it."""
    copy = folder / "csrc"
    shutil.copytree(ROOT / "csrc", copy)
    text = (copy / mutation.file).read_text()
    if text.count(mutation.old) != 1:
        raise AssertionError(f"{mutation.file} holds {mutation.old!r} {text.count(mutation.old)} times, wanted once")
    (copy / mutation.file).write_text(text.replace(mutation.old, mutation.new))
    return copy


def line_coverage(program: Program, binary: Binary, folder: Path) -> dict[str, tuple[int, list[int]]]:
    """Of each file under csrc: how many lines were run, and those that were not; from the counts in `folder`."""
    (counts,) = folder.rglob(f"{Path(program.source).stem}.gcda")
    shutil.copy(binary.notes, counts.with_suffix(".gcno"))
    report = compile_command(["gcov", "--json-format", "--stdout", str(counts)], cwd=folder).stdout
    lines: dict[str, dict[int, int]] = {}
    for file in json.loads(report)["files"]:
        path = Path(TESTS, file["file"]).resolve()
        if path.is_relative_to(ROOT / "csrc"):
            seen = lines.setdefault(str(path.relative_to(ROOT / "csrc")), {})
            for line in file["lines"]:
                seen[line["line_number"]] = seen.get(line["line_number"], 0) + line["count"]
    return {
        name: (sum(count > 0 for count in seen.values()), [line for line, count in seen.items() if count == 0])
        for name, seen in lines.items()
    }
