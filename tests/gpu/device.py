"""Where the Triton kernels are tried: on CUDA, or on a CPU in Triton's interpreter where the package is installed.

Import this before Triton and any module with kernels: the interpreter is chosen when they are defined.
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
    # The interpreter multiplies bfloat16 matrices as if they were whole numbers.
    DEVICE, HALF = torch.device("cpu"), torch.float16
    # It takes minutes, and computes with NumPy, which warns of what is no number.
    MARKS = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::RuntimeWarning")]
    os.environ["TRITON_INTERPRET"] = "1"

triton = pytest.importorskip("triton", reason="needs Triton, which comes with CUDA builds of torch")


def _let_numpy_read_loop_bounds() -> None:
    """The interpreter makes an int of an array with one element, which NumPy 2.4 refuses."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_lang_tensor(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_lang_tensor


if DEVICE.type == "cpu":
    _let_numpy_read_loop_bounds()
