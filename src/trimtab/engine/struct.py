"""`Struct` and `replace` of msgspec, and dataclasses in their place where it is not installed.

Within a process they are alike. What crosses a process border needs msgspec's own, which the
server imports itself; an engine in one's own process, on a bare GPU machine say, does without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from msgspec import Struct
    from msgspec.structs import replace
else:
    try:
        from msgspec import Struct
        from msgspec.structs import replace
    except ImportError:
        from dataclasses import dataclass, replace

        class Struct:
            """A mutable dataclass; how msgspec would encode it is of no account here."""

            def __init_subclass__(cls, array_like=False, omit_defaults=False):
                super().__init_subclass__()
                dataclass(cls)


__all__ = ["Struct", "replace"]
