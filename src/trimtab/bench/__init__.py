"""Speed: what this machine can do, what a model costs on it, and what the engine reaches."""
