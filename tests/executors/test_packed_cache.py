"""Packed models on disk: a second start gives the same bits; nothing stale or damaged is used."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpu_models import MemoryCheckpoint, memory_model, run_alone, tensor_shapes

from trimtab import _native
from trimtab.builtin import draft_path
from trimtab.checkpoints import open_checkpoint
from trimtab.checkpoints.base import StoredTensor
from trimtab.checkpoints.stored_file import FileSignature, StoredFile
from trimtab.config import ExecutorConfig, parse_weights
from trimtab.executors import content_digest, cpu, packed_cache, packed_file
from trimtab.executors.cpu import CpuExecutor
from trimtab.executors.packed_cache import PackedCache, WeightDigests
from trimtab.executors.weights import load_weights

TOKENS = [5, 70, 3, 3, 41, 9, 0, 76, 12, 30]
FORMATS = ["f32", "bf16", "int8", "int8-g32", "int4-g32"]


@dataclass
class FileCheckpoint(MemoryCheckpoint):
    """Its weights follow from a seed in a file; counts how often one is read."""

    reads: int = 0
    on_read: Callable[[], None] = lambda: None

    def tensor(self, name: str) -> StoredTensor:
        self.reads += 1
        self.on_read()
        return super().tensor(name)


def checkpoint_at(path: Path, **changes: Any) -> FileCheckpoint:
    model = memory_model(seed=int(path.read_text()), **changes)
    file = StoredFile(path, FileSignature.of(path.stat()))
    return FileCheckpoint(model.spec, model.tensors, weight_files=(file,))


def write_seed(path: Path, seed: int) -> None:
    """In place; returns when the file's signature shows it."""
    before = FileSignature.of(path.stat()) if path.exists() else None
    while not path.exists() or FileSignature.of(path.stat()) == before:
        path.write_text(f"{seed:04}")


def config(weights: str = "int4-g32", **values: Any) -> ExecutorConfig:
    name, group_size = parse_weights(weights)
    defaults = {"group_size": group_size, "num_blocks": 8, "threads": 2}
    return ExecutorConfig(weights=name, **(defaults | values))


def logits(checkpoint: Any, settings: ExecutorConfig | None = None) -> Any:
    executor = CpuExecutor(checkpoint, settings or config())
    try:
        return run_alone(executor, TOKENS)
    finally:
        executor.close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "cache" / "packed"
    monkeypatch.setenv("TRIMTAB_PACKED_CACHE", str(directory))
    return directory


@pytest.fixture
def seed(tmp_path: Path) -> Path:
    write_seed(tmp_path / "weights", 1)
    return tmp_path / "weights"


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests of files are remembered at once, not only when they have rested."""
    monkeypatch.setattr(packed_cache, "RESTING_NS", 0)


def packed_models(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.packed"))


# ---- hits


@pytest.mark.parametrize("weights", FORMATS)
def test_a_second_start_reads_no_weights_and_gives_the_same_bits(
    weights: str, cache: Path, seed: Path, settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = checkpoint_at(seed), checkpoint_at(seed)
    made = logits(first, config(weights))
    assert first.reads > 0
    (model,) = packed_models(cache)
    assert model.stat().st_mode & 0o077 == 0
    assert not list(cache.glob("*.tmp"))

    def refuse(*arguments: Any) -> bytes:
        raise AssertionError("the files are known: nothing is to be read")

    monkeypatch.setattr(packed_cache, "digest_file", refuse)
    assert (logits(second, config(weights)) == made).all()
    assert second.reads == 0
    monkeypatch.setenv("TRIMTAB_PACKED_CACHE", "off")
    assert (logits(checkpoint_at(seed), config(weights)) == made).all()


@pytest.mark.parametrize("weights", FORMATS)
def test_one_file_serves_every_kernel_path(
    weights: str, cache: Path, seed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits(checkpoint_at(seed), config(weights))
    for isa in _native.available_isas():
        monkeypatch.setenv("TRIMTAB_ISA", isa)
        mapped = checkpoint_at(seed)
        made = logits(mapped, config(weights))
        assert mapped.reads == 0
        assert (made == logits(checkpoint_at(seed).map(lambda name, x: x), config(weights))).all()


def test_a_real_checkpoint(cache: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(draft_path(), tmp_path / "draft"))
    made = logits(open_checkpoint(directory))
    (model,) = packed_models(cache)
    before = model.stat().st_ino
    # Moved, its files touched: the content is the same.
    moved = directory.rename(tmp_path / "moved")
    os.utime(moved / "model.safetensors", (0, 0))
    assert (logits(open_checkpoint(moved)) == made).all()
    assert [path.stat().st_ino for path in packed_models(cache)] == [before]


def test_the_mapped_model_is_held_until_the_executor_closes(cache: Path, seed: Path) -> None:
    logits(checkpoint_at(seed))
    (model,) = packed_models(cache)
    executor = CpuExecutor(checkpoint_at(seed), config())
    assert not packed_cache._remove_unheld(model)
    executor.close()
    assert packed_cache._remove_unheld(model)
    assert not model.exists()


def test_a_removed_model_stays_mapped(cache: Path, seed: Path) -> None:
    made = logits(checkpoint_at(seed))
    executor = CpuExecutor(checkpoint_at(seed), config())
    shutil.rmtree(cache)
    assert (run_alone(executor, TOKENS) == made).all()


def test_the_kv_cache_leaves_room_for_mapped_weights(
    cache: Path, seed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "available_memory", lambda: 1 << 22)
    settings = config(num_blocks=0)
    packed = CpuExecutor(checkpoint_at(seed), settings)
    mapped = CpuExecutor(checkpoint_at(seed), settings)
    block = packed.capacity.bytes_per_block
    assert packed.capacity.num_blocks == (1 << 22) // 4 // block
    free = (1 << 22) - mapped.weight_bytes
    assert mapped.capacity.num_blocks == free // 4 // block


# ---- damage


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def new_header(path: Path, **changes: Any) -> None:
    """A valid header that says something else."""
    data = path.read_bytes()
    values = packed_file._FIELDS.unpack(data[: packed_file._FIELDS.size])
    header = packed_file.PackedHeader(*values[2:])
    path.write_bytes(replace(header, **changes).to_bytes() + data[packed_file.HEADER_BYTES :])


def to_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_bytes(b""),
    "half a header": lambda path: os.truncate(path, 100),
    "header only": lambda path: os.truncate(path, packed_file.HEADER_BYTES),
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 1),
    "too long": lambda path: os.truncate(path, path.stat().st_size + 1),
    "magic": lambda path: flip(path, 0),
    "format version": lambda path: flip(path, 16),
    "revision": lambda path: new_header(path, revision=_native.PACKED_REVISION + 1),
    "size": lambda path: flip(path, 24),
    "vectors offset": lambda path: flip(path, 32),
    "key": lambda path: new_header(path, key=bytes(32)),
    "digest": lambda path: flip(path, 80),
    "padding of the header": lambda path: flip(path, packed_file.HEADER_BYTES - 1),
    "embedding": lambda path: flip(path, packed_file.HEADER_BYTES),
    "weights": lambda path: flip(path, packed_file.HEADER_BYTES + 9000),
    "vectors": lambda path: flip(path, -1),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a link": lambda path: path.symlink_to(path.rename(path.with_suffix(".away"))),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_rebuilt(
    kind: str, cache: Path, seed: Path, settled: None, caplog: pytest.LogCaptureFixture
) -> None:
    made = logits(checkpoint_at(seed))
    (model,) = packed_models(cache)
    good = model.read_bytes()
    DAMAGE[kind](model)
    damaged = checkpoint_at(seed)
    assert (logits(damaged) == made).all()
    assert damaged.reads > 0
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "packing the model again" in caplog.text
    assert model.read_bytes() == good
    rebuilt = checkpoint_at(seed)
    assert (logits(rebuilt) == made).all()
    assert rebuilt.reads == 0


@pytest.mark.parametrize("changes", [{"vectors_offset": 4096}, {"vectors_offset": 1 << 62}])
def test_offsets_that_lead_nowhere(changes: dict[str, int], cache: Path, seed: Path) -> None:
    """A header with a right checksum is still not believed about sizes."""
    made = logits(checkpoint_at(seed))
    (model,) = packed_models(cache)
    new_header(model, **changes)
    assert (logits(checkpoint_at(seed)) == made).all()


def test_a_directory_in_the_place_of_the_file(
    cache: Path, seed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = logits(checkpoint_at(seed))
    to_directory(packed_models(cache)[0])
    assert (logits(checkpoint_at(seed)) == made).all()
    assert "not a regular file" in caplog.text


def test_a_copy_of_a_good_file_is_verified_once(
    cache: Path, seed: Path, settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits(checkpoint_at(seed))
    (model,) = packed_models(cache)
    model.write_bytes(model.read_bytes())
    digested = []

    def count(*arguments: Any) -> bytes:
        digested.append(arguments)
        return content_digest.digest_file(*arguments)

    monkeypatch.setattr(packed_cache, "digest_file", count)
    for _ in range(3):
        start = checkpoint_at(seed)
        logits(start)
        assert start.reads == 0
    assert len(digested) == 1


# ---- what a model is


def test_changed_weights_are_a_miss_whatever_their_time_says(
    cache: Path, seed: Path, settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = seed.stat()
    old = logits(checkpoint_at(seed))
    write_seed(seed, 2)
    os.utime(seed, ns=(times.st_atime_ns, times.st_mtime_ns))
    changed = checkpoint_at(seed)
    new = logits(changed)
    assert changed.reads > 0
    assert (new != old).any()
    assert len(packed_models(cache)) == 2
    monkeypatch.setenv("TRIMTAB_PACKED_CACHE", "off")
    assert (new == logits(checkpoint_at(seed))).all()


def test_other_formats_and_configs_are_other_models(cache: Path, seed: Path) -> None:
    first = checkpoint_at(seed)
    logits(first)
    for settings in (config("int8"), config("int4-g64")):
        start = checkpoint_at(seed)
        logits(start, settings)
        assert start.reads > 0
    for other in (
        replace(checkpoint_at(seed), identity="another"),
        checkpoint_at(seed, norm_weight_offset=1.0),
    ):
        logits(other)
        assert other.reads > 0
    # What does not change the packed bytes does not pack again.
    same = checkpoint_at(seed)
    logits(same, config(kv_cache="int8", threads=1, num_blocks=9, max_context=99))
    assert same.reads == 0
    assert len(packed_models(cache)) == 5


def test_weights_that_change_while_they_are_packed_are_not_kept(cache: Path, seed: Path) -> None:
    start = checkpoint_at(seed)
    start.on_read = lambda: write_seed(seed, 3) if seed.read_text() == "0001" else None
    logits(start)
    assert packed_models(cache) == []
    # Nor those that have changed before the digest was taken.
    stale = replace(start, on_read=lambda: None)
    logits(stale)
    assert packed_models(cache) == []


def test_a_fresh_file_is_digested_again_after_packing(cache: Path, seed: Path) -> None:
    """Two writes within one tick of the clock look like one: then only the content can tell."""
    files = checkpoint_at(seed).weight_files
    keeper = PackedCache(cache, 1 << 30, 1)
    found = keeper.weight_digests(files)
    assert found is not None
    assert found.fresh == (True,)
    assert keeper.confirm(files, found)
    assert not keeper.confirm(files, WeightDigests((bytes(32),), (True,)))


PACKED_DIGESTS = {
    "f32": "01133d6b94e4c466",
    "bf16": "0ddb5ff7b1fdf8ba",
    "int8": "cfae12a6345f12a3",
    "int8-g32": "94706bb6a440f5f4",
    "int4-g32": "648b66aa7dc7bb98",
}


@pytest.mark.parametrize("isa", _native.available_isas())
@pytest.mark.parametrize("weights", FORMATS)
def test_the_packed_bytes_belong_to_their_revision(weights: str, isa: str) -> None:
    """If this fails, packed files of earlier builds would be read wrongly: raise kPackedRevision
    in native/core/packed_model.h, and give the new digests here."""
    assert _native.PACKED_REVISION == 3
    checkpoint = memory_model()
    numbers = np.arange(1 << 16, dtype=np.int64)
    for name, shape in tensor_shapes(checkpoint.spec).items():
        count = int(np.prod(shape))
        values = (numbers[:count] * 7919 + len(name) * 31) % 2003 - 1001
        data = (values / 1024).astype(np.float32).reshape(shape)
        checkpoint.tensors[name] = StoredTensor(data, "f32")
    native_shape = cpu._native_shape(checkpoint.spec, config(weights))
    builder = _native.ModelBuilder(native_shape, isa, 2)
    load_weights(builder, checkpoint)
    parts = [builder.packed_arena().data, memoryview(builder.packed_vectors())]
    digest = content_digest.digest_memory(parts, 1)
    assert digest.hex()[:16] == PACKED_DIGESTS[weights]


# ---- company


SCRIPT = """
import hashlib, sys
sys.path[:0] = sys.argv[1:3]
from cpu_models import run_alone
from trimtab.builtin import draft_path
from trimtab.checkpoints import open_checkpoint
from trimtab.config import ExecutorConfig
from trimtab.executors.cpu import CpuExecutor
sys.stdin.read(1)
executor = CpuExecutor(open_checkpoint(draft_path()), ExecutorConfig(weights="int4", num_blocks=8))
print(hashlib.sha256(run_alone(executor, range(9)).tobytes()).hexdigest())
"""


def test_starts_at_the_same_time(cache: Path) -> None:
    paths = [str(Path(__file__).parent), str(Path(cpu.__file__).parents[2])]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *paths],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    results = [process.communicate("x", timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], results
    assert {errors for _, errors in results} == {""}
    assert len({output for output, _ in results}) == 1
    assert len(packed_models(cache)) == 1
    assert not list(cache.glob("*.tmp"))
    start = CpuExecutor(open_checkpoint(draft_path()), ExecutorConfig(weights="int4", num_blocks=8))
    assert start._mapped is not None


def test_least_recently_used_models_make_room(
    cache: Path, seed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(number: int) -> FileCheckpoint:
        write_seed(seed, number)
        checkpoint = checkpoint_at(seed)
        logits(checkpoint)
        return checkpoint

    start(1)
    size = packed_models(cache)[0].stat().st_size
    monkeypatch.setenv("TRIMTAB_PACKED_CACHE_GIB", str(2.5 * size / (1 << 30)))
    models = {1: packed_models(cache)[0]}
    for number in (2, 3):
        if number == 3:
            for age, model in ((300, models[1]), (200, models[2])):
                entry = PackedCache(cache, 1, 1)._memo._path(model)
                os.utime(entry, (entry.stat().st_mtime - age,) * 2)
            assert start(1).reads == 0  # used: now 2 is the oldest
        start(number)
        (models[number],) = set(packed_models(cache)) - set(models.values())
    assert set(packed_models(cache)) == {models[1], models[3]}
    assert len(list((cache / "digests").iterdir())) == 2

    # What a process holds stays, even if then the new one cannot.
    write_seed(seed, 1)
    one = CpuExecutor(checkpoint_at(seed), config())
    write_seed(seed, 3)
    three = CpuExecutor(checkpoint_at(seed), config())
    start(4)
    assert set(packed_models(cache)) == {models[1], models[3]}
    one.close()
    start(4)
    assert models[1] not in packed_models(cache)
    assert models[3] in packed_models(cache)
    three.close()

    monkeypatch.setenv("TRIMTAB_PACKED_CACHE_GIB", str(0.5 * size / (1 << 30)))
    kept = packed_models(cache)
    start(5)  # larger than the limit: nothing is removed for it
    assert packed_models(cache) == kept


def test_what_a_crashed_writer_left_is_removed(cache: Path, seed: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "abc.tmp").write_bytes(b"half")
    (cache / "notes.txt").write_text("not ours")
    logits(checkpoint_at(seed))
    assert not list(cache.glob("*.tmp"))
    assert (cache / "notes.txt").exists()


KILLED = """
import os, signal
from trimtab.builtin import draft_path
from trimtab.checkpoints import open_checkpoint
from trimtab.config import ExecutorConfig
from trimtab.executors import packed_file
from trimtab.executors.cpu import CpuExecutor
write, packed_file._WRITE_BYTES = os.write, 1 << 16
def write_some(descriptor, data):
    if os.lseek(descriptor, 0, os.SEEK_CUR) > 1 << 18:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(descriptor, data)
packed_file.os.write = write_some
CpuExecutor(open_checkpoint(draft_path()), ExecutorConfig(weights="int4", num_blocks=8))
"""


def test_a_writer_killed_half_way_leaves_nothing_to_believe(cache: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(cpu.__file__).parents[2])}
    killed = subprocess.run([sys.executable, "-c", KILLED], env=environment, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    (half,) = cache.glob("*.tmp")
    assert half.stat().st_size > 1 << 18
    assert packed_models(cache) == []
    settings = config("int4-g64")
    made = logits(open_checkpoint(draft_path()), settings)
    assert len(packed_models(cache)) == 1
    assert not list(cache.glob("*.tmp"))
    executor = CpuExecutor(open_checkpoint(draft_path()), settings)
    assert executor._mapped is not None
    assert (run_alone(executor, TOKENS) == made).all()


@pytest.mark.parametrize("most", [1 << 30, 1000])  # bytes that the system takes at once
def test_no_write_crosses_a_piece(
    most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_file, "_WRITE_BYTES", 8192)
    write, ranges = os.write, []

    def write_some(descriptor: int, data: Any) -> int:
        start = os.lseek(descriptor, 0, os.SEEK_CUR)
        ranges.append((start, start + len(data) - 1))
        return write(descriptor, data[:most])

    monkeypatch.setattr(packed_file.os, "write", write_some)
    data = np.random.default_rng(0).bytes(50_000)
    parts = [memoryview(data[:40_000]), memoryview(data[40_000:])]
    header = packed_file.PackedHeader(1, 54_096, 44_096, bytes(32), bytes(32))
    with (tmp_path / "file").open("wb") as file:
        packed_file.write_packed(file.fileno(), header, parts)
    assert (tmp_path / "file").read_bytes() == header.to_bytes() + data
    assert all(first // 8192 == last // 8192 for first, last in ranges)


# ---- no cache


def test_off(seed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("TRIMTAB_PACKED_CACHE", "off")
    logits(checkpoint_at(seed))
    monkeypatch.setenv("TRIMTAB_PACKED_CACHE", "")
    monkeypatch.setenv("TRIMTAB_PACKED_CACHE_GIB", "0")
    logits(checkpoint_at(seed))
    assert not (tmp_path / "xdg").exists()
    monkeypatch.setenv("TRIMTAB_PACKED_CACHE_GIB", "1")
    logits(checkpoint_at(seed))
    assert len(packed_models(tmp_path / "xdg" / "trimtab" / "packed")) == 1


def test_a_model_in_no_file_is_not_kept(cache: Path) -> None:
    logits(memory_model())
    assert not cache.exists()


def is_a_file(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.parent.mkdir()
    cache.write_text("")


def is_below_a_file(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.parent.write_text("")


def is_read_only(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(packed_cache.tempfile, "mkstemp", refuse)


def is_everybodys(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o777)


def disk_is_full(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = os.statvfs("/")

    class Full:
        f_bavail = 1
        f_frsize = space.f_frsize

    monkeypatch.setattr(packed_cache.os, "statvfs", lambda path: Full)


def disk_fills_up(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = os.write, []

    def write_some(descriptor: int, data: Any) -> int:
        if len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(len(data))
        return write(descriptor, data[:1000])

    monkeypatch.setattr(packed_file.os, "write", write_some)


@pytest.mark.parametrize(
    "obstacle",
    [
        is_a_file,
        is_below_a_file,
        is_read_only,
        is_everybodys,
        disk_is_full,
        disk_fills_up,
    ],
)
def test_a_cache_that_cannot_be_used_is_one_line_in_the_log(
    obstacle: Callable[[Path, pytest.MonkeyPatch], None],
    cache: Path,
    seed: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.MonkeyPatch.context() as off:
        off.setenv("TRIMTAB_PACKED_CACHE", "off")
        made = logits(checkpoint_at(seed))
    with pytest.MonkeyPatch.context() as patch:
        obstacle(cache, patch)
        assert (logits(checkpoint_at(seed)) == made).all()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "cached" in caplog.text
    assert not cache.is_dir() or not [path for path in cache.iterdir() if path.is_file()]


@pytest.mark.parametrize(
    ("mode", "owner", "reason"),
    [
        (0o040700, 5, ""),
        (0o040775, 5, ""),
        (0o040755, 0, ""),
        (0o040755, 6, "another user"),
        (0o040777, 5, "everybody"),
        (0o100600, 5, "not a directory"),
    ],
)
def test_whose_directory_is_trusted(
    mode: int, owner: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_cache.os, "geteuid", lambda: 5)
    told = packed_cache._distrust(os.stat_result((mode, 0, 0, 1, owner, 0, 0, 0, 0, 0)))
    assert reason in told
    assert bool(reason) == bool(told)


# ---- digests


def test_digests_of_memory_and_of_files_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content_digest, "PIECE_BYTES", 100)
    data = np.random.default_rng(0).bytes(1234)
    (tmp_path / "file").write_bytes(b"head" + data)
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        whole = content_digest.digest_file(descriptor, 4, 1238, 3)
        for cut in (0, 1, 99, 100, 101, 250, 1234):
            parts = [memoryview(data[:cut]), memoryview(data[cut:])]
            assert content_digest.digest_memory(parts, 2) == whole
        assert content_digest.digest_file(descriptor, 4, 1237, 1) != whole
        with pytest.raises(OSError, match="too early"):
            content_digest.digest_file(descriptor, 4, 1239, 1)
    finally:
        os.close(descriptor)
