"""Tests that the golden files are what transformers 4.57.6 computes today."""

import os
from pathlib import Path

import pytest
import torch

from tests.golden import make, record
from tests.support.small_checkpoints import CATALOGUE

ENVIRONMENT_VARIABLE = "PHIMOE_GOLDEN_ENVIRONMENT"
"""May name a virtual environment to use, or to create and keep. By default a new one is created for this
run."""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_golden_files_can_be_made_again(tmp_path: Path) -> None:
    environment = Path(os.environ.get(ENVIRONMENT_VARIABLE, tmp_path / "environment"))
    make.make(environment, tmp_path / "golden")
    made_names = {path.stem for path in (tmp_path / "golden").glob("*.json")}
    kept_names = {path.stem for path in record.DIRECTORY.glob("*.json")}
    assert made_names == kept_names == {spec.name for spec in CATALOGUE}
    for name in sorted(kept_names):
        assert_same(record.load(name, tmp_path / "golden"), record.load(name))


def assert_same(made: record.Golden, kept: record.Golden) -> None:
    """Compare two results.

    They may differ by rounding, which may also swap neighbours with the same logprob.
    """
    assert made.made_with == kept.made_with
    assert made.weights_sha256 == kept.weights_sha256
    assert made.token_ids == kept.token_ids
    assert [one.length for one in made.passes] == [one.length for one in kept.passes]
    for made_pass, kept_pass in zip(made.passes, kept.passes, strict=True):
        made_logprobs, kept_logprobs = (torch.tensor(one.top_logprobs) for one in (made_pass, kept_pass))
        torch.testing.assert_close(made_logprobs, kept_logprobs, atol=2e-5, rtol=0, msg=made.name)
        is_clear = (kept_logprobs[:, :1] - kept_logprobs[:, 1:]).amin(-1) > 1e-4
        made_best, kept_best = (torch.tensor(one.top_ids)[:, 0] for one in (made_pass, kept_pass))
        assert torch.equal(made_best[is_clear], kept_best[is_clear]), made.name
