"""A cheaper model from a given one: quantization methods, calibrated one layer at a time."""
