"""Runs forward passes of transformers 4.57.6 over the small checkpoints, in the environment that make.py
prepares.

usage: python -m tests.golden.forward OUT

Only a full forward pass without a cache is right in that version. Its `generate` loses causality when it
rebuilds the cache at the rope limit, and it cuts a sliding window wrongly. In a full pass the rope factors
follow the length of the pass, and the mask is right in both attention classes: "eager" always adds the mask;
"sdpa" leaves it out only while the pass is shorter than the window, when plain causality is the same. Both
classes are run and must agree; the result of "eager" is recorded.
"""

import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.golden.record import NUM_TOP, Golden, Pass, lengths, save
from tests.support import small_checkpoints

TRANSFORMERS_VERSION = "4.57.6"


def main() -> None:
    out = Path(sys.argv[1])
    version = importlib.import_module("transformers").__version__
    if version != TRANSFORMERS_VERSION:
        raise SystemExit(f"transformers {TRANSFORMERS_VERSION} is needed, found {version}")
    torch.set_num_threads(1)  # The tensors are too small for more threads.
    for spec in small_checkpoints.CATALOGUE:
        with tempfile.TemporaryDirectory() as directory:
            checkpoint = small_checkpoints.write(spec, Path(directory))
            save(make_golden(spec, checkpoint), out)
        print(f"{spec.name}: done", flush=True)


def make_golden(spec: small_checkpoints.Spec, checkpoint: Path) -> Golden:
    """Run all passes over one checkpoint in float32."""
    generator = torch.Generator().manual_seed(1000 + spec.seed)
    token_ids = torch.randint(spec.vocab_size, (max(lengths(spec)),), generator=generator)
    eager, sdpa = (load_model(checkpoint, kind) for kind in ("eager", "sdpa"))
    passes = []
    for length in lengths(spec):
        logprobs = forward(eager, token_ids[:length])
        torch.testing.assert_close(forward(sdpa, token_ids[:length]), logprobs, atol=1e-4, rtol=0)
        top = logprobs.topk(NUM_TOP)
        top_logprobs = [[round(value, 6) for value in row] for row in top.values.tolist()]
        passes.append(Pass(length=length, top_ids=top.indices.tolist(), top_logprobs=top_logprobs))
    return Golden(
        name=spec.name,
        made_with=f"transformers {TRANSFORMERS_VERSION}",
        weights_sha256=small_checkpoints.checksum(spec),
        token_ids=token_ids.tolist(),
        passes=passes,
    )


def load_model(checkpoint: Path, attention: str) -> Any:
    """Load the model in float32. Raises RuntimeError if a tensor is missing or left over."""
    transformers = importlib.import_module("transformers")
    model, report = transformers.PhimoeForCausalLM.from_pretrained(
        checkpoint,
        config=transformers.PhimoeConfig(**original_dialect(checkpoint)),
        dtype=torch.float32,
        attn_implementation=attention,
        output_loading_info=True,
    )
    if any(report.values()):
        raise RuntimeError(f"{checkpoint}: not loaded as it stands: {report}")
    return model.eval()


def original_dialect(checkpoint: Path) -> dict[str, Any]:
    """Return the checkpoint's config as 4.57.6 reads it: no `rope_parameters`, the rope limit in both
    places."""
    values: dict[str, Any] = json.loads((checkpoint / "config.json").read_text())
    if (rope := values.pop("rope_parameters", None)) is not None:
        values["rope_theta"] = rope.pop("rope_theta")
        values["rope_scaling"] = rope if rope["rope_type"] == "longrope" else None
    if scaling := values["rope_scaling"]:
        key = "original_max_position_embeddings"
        values[key] = scaling[key] = scaling.get(key, values.get(key))
    return values


@torch.inference_mode()
def forward(model: Any, token_ids: Tensor) -> Tensor:
    """Return the logprobs [T, V] of one pass over token ids [T]."""
    logits: Tensor = model(input_ids=token_ids[None], use_cache=False).logits[0]
    return logits.float().log_softmax(-1)


if __name__ == "__main__":
    main()
