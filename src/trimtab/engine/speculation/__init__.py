"""Speculative decoding: proposers guess the next tokens, the target's own choice decides."""
