"""Whether a checkpoint's files are those that were written, and what to do where they are not.

A flipped bit in the weights or in AdamW's moments breaks nothing that a run would notice: it trains on. So the manifest
has the sha256 of what a run reads, and whoever goes on from a checkpoint compares them first (rank 0, once a start).
Refuses a damaged checkpoint in one sentence. Its cure depends on whether the run goes on from it or starts from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from la4vla import manifest
from la4vla.files import sha256
from la4vla.manifest import Checkpoint, DamagedCheckpoint, Manifest
from la4vla.types import UserError


def open_checkpoint(folder: Path, own: bool) -> Checkpoint:
    """own: the run goes on from it, else takes its weights. Raises UserError for one that is damaged or unreadable."""
    with curing(folder, own):
        return Checkpoint.open(folder)


def check(checkpoint: Checkpoint, own: bool) -> None:
    """Raises UserError unless every file that is going to be read is there and is what was written: the weights and the
    tokenizer, and where the run goes on from it the optimizer's state and averages. Reads all of them."""
    with curing(checkpoint.folder, own):
        for name, written in _files(checkpoint.manifest, own).items():
            path = _present(checkpoint.folder, name)
            if sha256(path) != written:
                raise DamagedCheckpoint(checkpoint.folder, f"its {name} is damaged (another sha256 than when written)")


def check_present(checkpoint: Checkpoint, own: bool) -> None:
    """The same without reading the files."""
    with curing(checkpoint.folder, own):
        for name in _files(checkpoint.manifest, own):
            _present(checkpoint.folder, name)


@contextmanager
def curing(folder: Path, own: bool, name: str = manifest.MANIFEST) -> Iterator[None]:
    """Around reading file `name` of a checkpoint: what is damaged is said with the cure that works for this run."""
    try:
        yield
    except (DamagedCheckpoint, SafetensorError) as error:
        what = error.what if isinstance(error, DamagedCheckpoint) else f"its {name} is damaged ({error})"
        raise UserError(f"{folder}: {what}; {_cure(folder, own)}") from error


def _files(written: Manifest, own: bool) -> dict[str, str]:
    """File of a checkpoint that a run reads -> its sha256."""
    tokenizer = {f"{manifest.TOKENIZER}/{name}": digest for name, digest in written.tokenizer_sha256.items()}
    training = {manifest.TRAINING: written.training_sha256} if own else {}
    averages = {manifest.EMA: written.ema_sha256} if own and written.ema_sha256 else {}
    return {manifest.WEIGHTS: written.weights_sha256, **training, **averages, **tokenizer}


def _present(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise DamagedCheckpoint(folder, f"it lacks {name}")
    return folder / name


def _cure(folder: Path, own: bool) -> str:
    of_run = [path for path in manifest.complete(folder.parent.parent) if path.parent == folder.parent]
    before = [path for path in of_run if path.name < folder.name]
    if own and before:
        return f"remove it (rm -r {folder}) and start again: the run resumes from {before[-1].name}, the one before it."
    if own:
        return (
            f"remove it (rm -r {folder}) and start again: the run has no checkpoint before it and begins anew, at step "
            "0."
        )
    if before:
        return f"copy it again, or set run.init_from={before[-1]}, the one before it."
    return "copy it again, or set run.init_from to another checkpoint."
