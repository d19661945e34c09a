"""Stored models: `open_checkpoint` for what is on disk, `resolve_model` for what a user types."""

from __future__ import annotations

from trimtab.checkpoints.opening import open_checkpoint
from trimtab.checkpoints.resolve import resolve_model

__all__ = ["open_checkpoint", "resolve_model"]
