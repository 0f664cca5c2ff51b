"""Folders that hold checkpoints: a folder with its final name is whole, whenever the writer was killed.

    root/step_000123/            manifest.json + every file that it lists
    root/.writing_step_000124/   being written; no reader looks at it, the next save removes it

A checkpoint is written under the second name, its files are synced to disk, the manifest comes last, and one atomic
rename publishes it. Removal goes the other way: rename first, then delete. The manifest holds size and SHA-256 of every
file, so a missing, truncated or altered file is refused by name. This module knows files only; what is in them, and who
writes them in a distributed job, is `pyrl.learner.checkpoint`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
TRAINER_STATE = "trainer_state.json"
FORMAT_VERSION = 2

_FINAL_NAME = re.compile(r"step_(\d{6,})")
_WRITING, _REMOVING = ".writing_", ".removing_"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or is not fit to be read. The text names folder, file and remedy."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What the manifest says of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The contents of `manifest.json`."""

    step: int
    layout: dict[str, Any]
    """How the job that wrote it was laid out: facts that a reader may have to compare with its own."""
    files: dict[str, FileRecord]
    """Path inside the folder -> size and hash, the manifest itself left out."""


def step_folder(root: Path, step: int) -> Path:
    """The final name of a step's checkpoint."""
    return root / f"step_{step:06d}"


def step_of(folder: Path) -> int | None:
    """The step in a final name, None for any other name."""
    match = _FINAL_NAME.fullmatch(folder.name)
    return int(match.group(1)) if match else None


def complete_checkpoints(root: Path) -> list[Path]:
    """Checkpoint folders under `root`, oldest step first; none if there is no such folder."""
    if not root.is_dir():
        return []
    return sorted((f for f in root.iterdir() if step_of(f) is not None and f.is_dir()), key=lambda f: step_of(f) or 0)


def latest_checkpoint(root: Path | str) -> Path | None:
    """The checkpoint of the highest step under `root`, None if there is none.

    Unfinished folders never count. A damaged checkpoint does: passing it over silently would repeat or lose steps, so
    reading it is what fails, with the file's name.
    """
    folders = complete_checkpoints(Path(root))
    return folders[-1] if folders else None


def begin(root: Path, step: int) -> Path:
    """Create `root` and an empty folder to write into; what killed writers left behind is removed."""
    root.mkdir(parents=True, exist_ok=True)
    for left_over in root.iterdir():
        if left_over.name.startswith((_WRITING, _REMOVING)):
            abandon(left_over)
    folder = root / f"{_WRITING}{step_folder(root, step).name}"
    folder.mkdir()
    return folder


def abandon(unfinished: Path) -> None:
    """Remove the folder of a save that failed, if it is still there, which also gives back its disk space."""
    try:
        if unfinished.exists():
            shutil.rmtree(unfinished)
    except OSError as error:  # the failure that brought us here matters more than this one
        logger.warning("%s could not be removed: %s; the next save tries again", unfinished, error)


def publish(writing: Path, root: Path, manifest: Manifest, keep_last: int) -> Path:
    """Write the manifest, give the folder its final name, then drop the oldest beyond `keep_last`.

    The caller has synced every file of the manifest. Checkpoints of the same or a later step (the run was rewound) are
    set aside. Raises CheckpointError where a file is missing or of another size: some rank wrote it elsewhere.
    """
    _check_here(writing, manifest)
    final = step_folder(root, manifest.step)
    document = {"format_version": FORMAT_VERSION, **asdict(manifest)}
    write_synced(writing / MANIFEST, json.dumps(document, indent=1, sort_keys=True).encode())
    for folder in {f.parent for f in (writing / name for name in manifest.files)} | {writing}:
        _sync_folder(folder)
    set_aside_from(root, manifest.step)
    os.rename(writing, final)
    _sync_folder(root)
    _prune(root, keep_last)
    return final


def set_aside_from(root: Path, step: int) -> None:
    """Rename the checkpoints of `step` and later to `superseded_...`: no run resumes from them, and none is lost."""
    for folder in complete_checkpoints(root):
        if (step_of(folder) or 0) >= step:
            set_aside(folder)


def read_manifest(folder: Path | str) -> Manifest:
    """Parse `manifest.json`. Raises CheckpointError if folder or manifest is missing or cannot be understood."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint folder {folder} does not exist")
    path = folder / MANIFEST
    try:
        document = json.loads(path.read_bytes())
        if document["format_version"] != FORMAT_VERSION:
            raise CheckpointError(
                f"{path}: format_version {document['format_version']!r}, this version of pyrl reads {FORMAT_VERSION}: "
                "go on with the version that wrote it, or start anew"
            )
        files = {name: FileRecord(**record) for name, record in document["files"].items()}
        return Manifest(document["step"], document["layout"], files)
    except FileNotFoundError:
        raise CheckpointError(_refusal(folder, MANIFEST, "is missing")) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(_refusal(folder, MANIFEST, f"cannot be read ({error!r})")) from error


def verify(folder: Path, manifest: Manifest, names: Iterable[str] | None = None) -> None:
    """Compare files with the manifest: all of them by size, and those in `names` (None: all) by hash too.

    Raises CheckpointError naming the first file that is missing, truncated or altered, and the remedy.
    """
    for name, record in manifest.files.items():
        try:
            size = os.stat(folder / name).st_size
        except FileNotFoundError:
            raise CheckpointError(_refusal(folder, name, "is missing")) from None
        if size != record.bytes:
            raise CheckpointError(_refusal(folder, name, f"has {size} bytes, the manifest says {record.bytes}"))
    for name in manifest.files if names is None else names:
        if hash_file(folder / name).sha256 != manifest.files[name].sha256:
            raise CheckpointError(_refusal(folder, name, "does not have the SHA-256 of the manifest"))


def read_trainer_state(folder: Path | str) -> dict[str, Any]:
    """The trainer's own state, after checking that file against the manifest. Raises CheckpointError."""
    folder = Path(folder)
    manifest = read_manifest(folder)
    if TRAINER_STATE not in manifest.files:
        raise CheckpointError(_refusal(folder, TRAINER_STATE, "is not listed in the manifest"))
    verify(folder, manifest, names=[TRAINER_STATE])
    return json.loads((folder / TRAINER_STATE).read_bytes())


def encode_trainer_state(state: dict[str, Any]) -> bytes:
    """JSON text of the state. Raises CheckpointError if reading it back would not give an equal object."""
    try:
        text = json.dumps(state, allow_nan=False, indent=1, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"trainer_state cannot be written as JSON: {error}") from error
    if json.loads(text) != state:
        raise CheckpointError("trainer_state changes when read back from JSON: use lists, not tuples, and string keys")
    return text.encode()


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with open(path, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def hash_file(path: Path) -> FileRecord:
    """Size and SHA-256 of a file."""
    with open(path, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return FileRecord(bytes=stream.tell(), sha256=digest)


def _check_here(writing: Path, manifest: Manifest) -> None:
    for name, record in manifest.files.items():
        path = writing / name
        size = path.stat().st_size if path.exists() else None
        if size != record.bytes:
            found = "is not there" if size is None else f"has {size} bytes instead of {record.bytes}"
            raise CheckpointError(
                f"{path} {found}, although a rank has written it: on several nodes the run folder must be on a disk "
                "that all of them share"
            )


def _refusal(folder: Path, name: str, what: str) -> str:
    earlier = [f for f in complete_checkpoints(folder.parent) if (step_of(f) or 0) < (step_of(folder) or 0)]
    remedy = f"resume from {earlier[-1]}" if earlier else "there is no earlier one beside it"
    return f"checkpoint {folder} is damaged: {name} {what}. Restore that file, or remove the folder; {remedy}."


def set_aside(folder: Path) -> None:
    """Rename it to `superseded_...`, beside what was set aside before."""
    count = 0
    while (target := folder.with_name(f"superseded_{folder.name}" + (f".{count}" if count else ""))).exists():
        count += 1
    os.rename(folder, target)
    logger.warning("the run went back before %s: it is now %s, remove it when you do not need it", folder, target)


def _prune(root: Path, keep_last: int) -> None:
    for folder in complete_checkpoints(root)[:-keep_last]:
        doomed = root / f"{_REMOVING}{folder.name}"
        try:
            os.rename(folder, doomed)  # first, so that a kill half way leaves no folder that looks whole
            shutil.rmtree(doomed)
        except OSError as error:  # the new checkpoint is safe, so a run need not end here
            logger.warning("old checkpoint %s could not be removed: %s", folder, error)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
