"""Number formats: rounding, scales, packed layouts, and the kernels' arithmetic in numpy.

Nothing is imported here: take what you need from `floats`, `quantization`, `gemm` and `packed`.
"""
