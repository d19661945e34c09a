"""trimtab: measure, choose and serve the cheapest way to run a language model."""

from __future__ import annotations

__version__ = "0.1.0"
