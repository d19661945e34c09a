"""One evaluation: models loaded, text scored, tasks answered, a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.config import ExecutorConfig, KVFormat, parse_weights
from trimtab.errors import ConfigError, UserError
from trimtab.evaluation.estimate import Estimate
from trimtab.evaluation.scoring import blocks_needed
from trimtab.evaluation.tasks import Task, TaskQuality, task_quality, task_tokens
from trimtab.evaluation.text_quality import TextQuality, rows_of_step, text_quality
from trimtab.evaluation.windows import Window, text_windows
from trimtab.executors.formats import stored_label
from trimtab.executors.opening import open_executor

if TYPE_CHECKING:
    from trimtab.checkpoints.base import Checkpoint
    from trimtab.executors.base import Executor
    from trimtab.tokenization import Tokenizer

KV_BLOCK = 16  # tokens
TASKS_AT_ONCE = 64  # SchedulerConfig.max_num_requests


@dataclass(frozen=True)
class Subject:
    """A model in one configuration."""

    model: str
    config: ExecutorConfig
    stored: str = ""  # the format of a checkpoint that stores integers, once it is loaded

    @property
    def weights(self) -> str:
        return self.stored or self.config.weights_label

    @property
    def label(self) -> str:
        return f"{self.model} {self.weights}, KV {self.config.kv_cache}"


@dataclass(frozen=True)
class Report:
    subject: Subject
    baseline: Subject | None
    window: int  # tokens
    text: TextQuality | None
    tasks: TaskQuality | None

    def as_json(self) -> dict[str, Any]:
        def name(subject: Subject) -> dict[str, str]:
            return {
                "model": subject.model,
                "weights": subject.weights,
                "kv_cache": subject.config.kv_cache,
            }

        return {
            **name(self.subject),
            "baseline": None if self.baseline is None else name(self.baseline),
            "window_tokens": self.window,
            "text": None if self.text is None else self.text.as_json(),
            "tasks": None if self.tasks is None else self.tasks.as_json(),
        }

    def lines(self) -> list[str]:
        """For people; brackets are 95 % confidence intervals."""
        lines = [f"{self.subject.label}; in brackets 95 % confidence intervals"]
        if self.text is not None:
            lines += ["", *_text_lines(self.text, self.window)]
            if self.baseline is not None:
                lines += ["", *_distance_lines(self.text, self.baseline)]
        if self.tasks is not None:
            lines += ["", *_task_lines(self.tasks)]
        return lines


def parse_baseline(text: str, subject: Subject) -> Subject:
    """`bf16` or another weight format: the subject's own model in that; else a model, as bf16, or
    MODEL:FORMAT. The KV cache of a float32 baseline is float32, of others bf16."""
    model, _, label = text.rpartition(":")
    try:
        weights, group_size = parse_weights(label)
        model = model or subject.model
    except ConfigError:
        (weights, group_size), model = ("bf16", 0), text
    kv_cache: KVFormat = "f32" if weights == "f32" else "bf16"
    config = replace(subject.config, weights=weights, group_size=group_size, kv_cache=kv_cache)
    return Subject(model, config)


def read_text(path: Path) -> str:
    """Raises UserError for what is no UTF-8 text."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8") from None


def run_evaluation(
    subject: Subject,
    texts: Sequence[str],
    tasks: Sequence[Task],
    window: int,
    limit: int = 0,
    baseline: Subject | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Report:
    """Scores windows of `window` tokens of the texts, at most `limit` (0: all), and answers the
    tasks; either may be empty. Raises UserError for what cannot be evaluated."""
    from trimtab.checkpoints import open_checkpoint, resolve_model
    from trimtab.engine.engine import Engine
    from trimtab.engine.llm import LLM
    from trimtab.executors.devices import check_device
    from trimtab.tokenization import load_tokenizer

    check_device(subject.config.device)
    path = resolve_model(subject.model)
    tokenizer = load_tokenizer(path)
    windows = text_windows(tokenizer, texts, window, limit) if texts else []
    if baseline is not None:
        check_same_vocabulary(subject, baseline, texts)
    progress(f"loading {subject.label}")
    checkpoint = open_checkpoint(path, subject.config.max_context)
    rows = rows_of_step(checkpoint.spec.vocab_size, with_logits=baseline is not None)
    config = subject.config
    if baseline is not None:
        config = _with_room(config, windows, tasks, tokenizer, rows)
    executor = open_executor(checkpoint, config, rows, TASKS_AT_ONCE if tasks else 1)
    text_found = tasks_found = None
    with LLM.from_engine(Engine(executor), tokenizer) as llm:
        subject = _as_loaded(subject, executor, checkpoint)
        if baseline is not None and subject.stored and baseline.model == subject.model:
            raise ConfigError(
                f"{subject.model} stores its weights as {subject.stored}, whatever is asked for: "
                f"name the model that it was made of, as in --baseline MODEL:{baseline.weights}"
            )
        if windows:
            reference = None
            if baseline is not None:
                progress(f"loading {baseline.label}")
                blocks = blocks_needed(windows, executor.capacity.block_size, rows)
                config = replace(baseline.config, num_blocks=blocks, kv_cache_gib=0.0)
                other = open_checkpoint(resolve_model(baseline.model), config.max_context)
                reference = open_executor(other, config, rows, 1)
                baseline = _as_loaded(baseline, reference, other)
            progress(f"scoring {len(windows)} windows")
            try:
                text_found = text_quality(executor, windows, reference)
            finally:
                if reference is not None:
                    reference.close()
        if tasks:
            progress(f"answering {len(tasks)} tasks")
            tasks_found = task_quality(llm, tasks)
    return Report(subject, baseline, window, text_found, tasks_found)


def _as_loaded(subject: Subject, executor: Executor, checkpoint: Checkpoint) -> Subject:
    from trimtab.executors.cpu import CpuExecutor

    if not isinstance(executor, CpuExecutor):
        return replace(subject, stored=stored_label(checkpoint))
    formats = executor.formats
    return replace(subject, stored=formats.label) if formats.quantized else subject


def _with_room(
    config: ExecutorConfig,
    windows: Sequence[Window],
    tasks: Sequence[Task],
    tokenizer: Tokenizer,
    rows: int,
) -> ExecutorConfig:
    """On a GPU, whose memory one executor would take all of, beside a second one: a KV cache of
    what is needed, unless its size is given."""
    if config.device != "cuda" or config.num_blocks or config.kv_cache_gib:
        return config
    blocks = blocks_needed(windows, KV_BLOCK, rows) if windows else 1
    if tasks:
        longest = max(task_tokens(tokenizer, task) for task in tasks)
        blocks = max(blocks, TASKS_AT_ONCE * (-(-longest // KV_BLOCK) + 1))
    return replace(config, num_blocks=blocks)


def check_same_vocabulary(subject: Subject, baseline: Subject, texts: Sequence[str]) -> None:
    """Raises ConfigError unless both make the same tokens of the texts."""
    from trimtab.checkpoints import open_checkpoint, resolve_model
    from trimtab.tokenization import load_tokenizer

    if baseline.model == subject.model:
        return
    paths = [resolve_model(model) for model in (subject.model, baseline.model)]
    ours, theirs = (load_tokenizer(path) for path in paths)
    sizes = {open_checkpoint(path).spec.vocab_size for path in paths}
    if len(sizes) > 1 or any(ours.encode(text) != theirs.encode(text) for text in texts):
        raise ConfigError(
            f"{baseline.model} has another vocabulary than {subject.model}: a divergence needs the "
            "same one"
        )


def _text_lines(text: TextQuality, window: int) -> list[str]:
    return [
        f"{text.num_windows} windows of up to {window} tokens: {text.num_tokens:,} tokens scored, "
        f"{text.num_bytes:,} bytes",
        f"  perplexity      {_show(text.perplexity, '.4f')}",
        f"  bits per byte   {_show(text.bits_per_byte, '.4f')}",
    ]


def _distance_lines(text: TextQuality, baseline: Subject) -> list[str]:
    found = text.distance
    assert found is not None
    percent = found.top1.map(lambda share: 100 * share)
    return [
        f"against {baseline.label}",
        f"  KL divergence   {_show(found.kl, '.6f')} nats; median {found.kl_median:.6f}, "
        f"99th percentile {found.kl_p99:.6f}, largest {found.kl_max:.4f}",
        f"  same top token  {_show(percent, '.2f')} %",
        f"  loss            {_show(found.nll_change, '+.6f')} nats a token",
        f"  probability of the text's token changes by {100 * found.target_rms:.3f} % (RMS)",
    ]


def _task_lines(tasks: TaskQuality) -> list[str]:
    right = sum(right for right, _ in tasks.by_kind.values())
    count = sum(count for _, count in tasks.by_kind.values())
    percent = tasks.accuracy.map(lambda share: 100 * share)
    lines = [f"tasks: {right} of {count} right, {_show(percent, '.1f')} %"]
    if len(tasks.by_kind) > 1:
        lines += [
            f"  {kind or 'other':15} {right} of {count}"
            for kind, (right, count) in tasks.by_kind.items()
        ]
    return lines


def _show(estimate: Estimate, style: str) -> str:
    value, low, high = (
        format(number, style) for number in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} [{low}, {high}]"
