"""Builds the torch-free kernel sources (`csrc/*/*.cu`) for the host, through tests/csrc/emulation, and runs them."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests" / "csrc"
CACHE = ROOT / "build" / "emulation"
COMPILE = ["g++", "-std=c++20", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-pthread"]
FLAGS = {
    "address": ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-O1", "-g1", "-fsanitize=thread"],
    # Quick to compile, for programs that are to fail.
    "address mutant": ["-O0", "-w", "-fsanitize=address"],
    "thread mutant": ["-O0", "-w", "-fsanitize=thread"],
    "coverage": ["-O0", "--coverage", "-fprofile-update=atomic"],
}
SECONDS = 300


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


def build(program: Program, kind: str, csrc: Path = ROOT / "csrc") -> Path:
    """The program, compiled with `FLAGS[kind]`, in a folder of its own; built anew only if a file or a flag changed."""
    objects = [
        compile_object([*COMPILE, *FLAGS[kind]], csrc / program.source, csrc),
        compile_object([*COMPILE, *FLAGS[kind]], TESTS / f"{program.name}_test.cpp", csrc),
    ]
    digest = hashlib.sha256(" ".join(map(str, objects)).encode()).hexdigest()[:16]
    binary = CACHE / f"{program.name}-{digest}" / program.name
    if not binary.exists():
        binary.parent.mkdir(parents=True, exist_ok=True)
        compile_command([*COMPILE, *FLAGS[kind], *map(str, objects), "-o", str(binary) + ".new"], cwd=binary.parent)
        Path(str(binary) + ".new").replace(binary)
    return binary


def compile_object(command: list[str], source: Path, csrc: Path) -> Path:
    includes = [f"-I{TESTS / 'emulation'}", f"-I{TESTS}", f"-I{csrc}"]
    preprocessed = compile_command([*command, *includes, "-E", "-P", "-x", "c++", str(source)], cwd=TESTS).stdout
    digest = hashlib.sha256((" ".join(command) + preprocessed).encode()).hexdigest()[:16]
    target = CACHE / "objects" / digest / f"{source.stem}.o"
    complete = target.with_suffix(".complete")
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


def run(binary: Path, *, stop_at_first: bool = False) -> subprocess.CompletedProcess[str]:
    """Address space layout is not randomised: this compiler's ThreadSanitizer cannot place its memory otherwise."""
    command = [str(binary)]
    if shutil.which("setarch"):
        command = ["setarch", platform.machine(), "-R", *command]
    environment = os.environ | {"TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"}
    if stop_at_first:
        environment["CHECK_STOP_AT_FIRST"] = "1"
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)


def mutated(mutation: Mutation, folder: Path) -> Path:
    """A copy of csrc with the defect in it."""
    copy = folder / "csrc"
    shutil.copytree(ROOT / "csrc", copy)
    text = (copy / mutation.file).read_text()
    if text.count(mutation.old) != 1:
        raise AssertionError(f"{mutation.file} holds {mutation.old!r} {text.count(mutation.old)} times, wanted once")
    (copy / mutation.file).write_text(text.replace(mutation.old, mutation.new))
    return copy


def line_coverage(program: Program, folder: Path) -> dict[str, tuple[int, list[int]]]:
    """Of each file under csrc: how many lines were run, and those that were not."""
    binary = build(program, "coverage")
    environment = os.environ | {"GCOV_PREFIX": str(folder)}
    subprocess.run([str(binary)], env=environment, check=True, capture_output=True, timeout=SECONDS)
    (counts,) = folder.rglob(f"{Path(program.source).stem}.gcda")
    source = compile_object([*COMPILE, *FLAGS["coverage"]], ROOT / "csrc" / program.source, ROOT / "csrc")
    notes = source.with_suffix(".gcno")
    shutil.copy(notes, counts.with_suffix(".gcno"))
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
