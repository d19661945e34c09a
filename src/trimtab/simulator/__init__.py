"""The engine's own scheduler on a virtual clock, with steps that take their predicted time."""
