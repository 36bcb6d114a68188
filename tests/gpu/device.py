"""The device on which Triton kernels are tested: CUDA, or else a CPU in Triton's interpreter.

Import this module before Triton and any module with kernels: Triton chooses the interpreter when kernels are
defined.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

if torch.cuda.is_available():
    DEVICE, HALF = torch.device("cuda"), torch.bfloat16
    MARKS = [pytest.mark.gpu]
else:
    # The interpreter multiplies bfloat16 matrices as if they were integers.
    DEVICE, HALF = torch.device("cpu"), torch.float16
    # The interpreter takes minutes, and it computes with NumPy, which warns of NaN.
    MARKS = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::RuntimeWarning")]
    os.environ["TRITON_INTERPRET"] = "1"

triton = pytest.importorskip("triton", reason="needs Triton, which comes with CUDA builds of torch")


def _let_numpy_read_loop_bounds() -> None:
    """Let the interpreter convert an array of one element to an int, which NumPy 2.4 refuses."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_lang_tensor(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_lang_tensor


if DEVICE.type == "cpu":
    _let_numpy_read_loop_bounds()
