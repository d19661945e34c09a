from __future__ import annotations

import os

# No test, and no process that a test starts, may touch the user's own cache.
os.environ["TRIMTAB_PACKED_CACHE"] = "off"
