"""Which bytes a model is: a digest over its weights, its config and its tokenizer."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from pathlib import Path

from trimtab.checkpoints.base import Checkpoint
from trimtab.checkpoints.stored_file import RESTING_NS, FileSignature, StoredFile
from trimtab.environment import optimizer_cache_directory
from trimtab.errors import CheckpointError
from trimtab.executors.content_digest import digest_file
from trimtab.executors.digest_memo import DigestMemo
from trimtab.executors.resources import available_cpus

# Beside the weights and config.json, which the checkpoint itself answers for.
TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)


def content_hash(checkpoint: Checkpoint) -> str:
    """Hex digest. Opened with another `max_context`, a model whose ropes depend on it is another.

    Reads every weight once; digests are remembered in the optimizer's cache as long as the files
    stay as they are. Raises CheckpointError if a file has changed since the checkpoint was opened.
    """
    directory = optimizer_cache_directory()
    memo = None
    if directory is not None:
        with contextlib.suppress(OSError):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        memo = DigestMemo(directory / "digests")
    digest = hashlib.sha256(b"trimtab content 1\n")
    digest.update(checkpoint.identity.encode())
    for file in checkpoint.weight_files:
        digest.update(b"\n" + file_digest(file, memo))
    place = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    if checkpoint.path.suffix != ".gguf":
        for name in TEXT_FILES:
            path = place / name
            if path.is_file():
                digest.update(f"\n{name} ".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def file_digest(file: StoredFile, memo: DigestMemo | None) -> bytes:
    """32 bytes. Raises CheckpointError if it cannot be read, or is not what it was."""
    known = None if memo is None else memo.find(file)
    if known is not None and file.is_unchanged():
        return known
    signature = file.signature
    fresh = time.time_ns() - max(signature.mtime_ns, signature.ctime_ns) < RESTING_NS
    try:
        descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if FileSignature.of(os.fstat(descriptor)) != signature:
                raise CheckpointError(f"{file.path}: has changed while it was read; try again")
            digest = digest_file(descriptor, 0, signature.size, available_cpus())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise CheckpointError(f"{file.path}: cannot be read: {error.strerror or error}") from None
    if memo is not None and not fresh and file.is_unchanged():
        memo.remember(file, digest)
    return digest


def path_digest(path: Path) -> str:
    """Hex digest of one file's content. Raises CheckpointError."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
