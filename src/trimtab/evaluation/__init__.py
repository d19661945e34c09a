"""What a model is worth: perplexity, divergence from a baseline, tasks; each with its error bar."""
