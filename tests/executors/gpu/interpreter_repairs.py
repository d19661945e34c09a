"""Triton's interpreter, made to round as a card does.

Triton 3.6 and 3.7 cut bf16 and e4m3 off where a card rounds to nearest even, carry nothing into
the exponent, and multiply the bit patterns of bf16 in `tl.dot`, whose sums are numpy's: their order
depends on the shape and on the processor, and so would bits, where a card has one order. Kernels
are written for the card, so the interpreter is what has to change. Overflow in e4m3 saturates, as
cvt.rn.satfinite does. A scalar that was loaded or summed is an array of one element, which numpy
2.4 takes for no index. And it replaces the whole language again at every call of one kernel
function by another, which takes a third of the time of the tests.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

# Types that numpy lacks: the interpreter holds their bits.
_NARROW = {
    tl.bfloat16: torch.bfloat16,
    tl.float8e4nv: torch.float8_e4m3fn,
    tl.float8e5: torch.float8_e5m2,
}


def repair_interpreter() -> None:
    """Idempotent; without effect on kernels that are compiled."""
    interpreter.InterpreterBuilder.cast_impl = _cast
    interpreter.InterpreterBuilder.create_fp_to_fp = _cast
    interpreter.InterpreterBuilder.create_dot = _dot
    interpreter._patch_lang_tensor = _patch_tensor
    interpreter._patch_lang = _patch_once


_patch_tensor_as_it_was = interpreter._patch_lang_tensor
_patch_as_it_was = interpreter._patch_lang


def _patch_tensor(tensor: Any, scope: Any) -> None:
    _patch_tensor_as_it_was(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.reshape(())))


def _patch_once(function: Any) -> Any:
    """What is to be restored; nothing, if it was replaced in all modules that the function sees."""
    named = [module for module in function.__globals__.values() if module in (tl, tl.core)]
    replaced = not any(tl.core.is_builtin(module.load) for module in named)
    return interpreter._LangPatchScope() if replaced else _patch_as_it_was(function)


def _widened(x: Any) -> np.ndarray:
    """The values of a tensor handle, in a type of numpy's."""
    narrow = _NARROW.get(x.dtype.scalar)
    if narrow is None:
        return x.data
    flat = np.array(x.data).reshape(-1)
    wide = torch.from_numpy(flat.view(np.uint8)).view(narrow).float()
    return wide.numpy().reshape(x.data.shape)


def _cast(builder: Any, source: Any, target: tl.dtype, rounding_mode: Any = None) -> Any:
    wide, dtype = _widened(source), interpreter._get_np_dtype(target)
    narrow = _NARROW.get(target.scalar)
    if narrow is None:
        data = wide.astype(dtype)
    else:
        values = torch.from_numpy(np.array(wide, np.float32).reshape(-1))
        if narrow == torch.float8_e4m3fn:
            values = values.clamp(-448, 448)
        data = values.to(narrow).view(torch.uint8).numpy().view(dtype).reshape(wide.shape)
    return interpreter.TensorHandle(data, target.scalar)


def _dot(
    builder: Any, a: Any, b: Any, sum_: Any, input_precision: Any, max_num_imprecise_acc: Any
) -> Any:
    """Products and sums, in the order of the columns, in the accumulator's type: float32; int32 of
    int8 operands."""
    total = np.array(sum_.data)
    left, right = _widened(a).astype(total.dtype), _widened(b).astype(total.dtype)
    for k in range(left.shape[1]):
        total += left[:, k, None] * right[None, k, :]
    return interpreter.TensorHandle(total, sum_.dtype.scalar)
