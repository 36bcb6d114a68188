"""Tests the oracle against the golden files, and its parts against cases worked out by hand."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.golden import record
from tests.reference import Reference, Routing, parse_config, rope_tables, sparse_mixer, visible
from tests.support import small_checkpoints
from tests.support.small_checkpoints import CATALOGUE, ORIGINAL_MAX, Spec

LOGPROB_TOLERANCE = 1e-4
E_MINUS_001 = math.exp(-0.01)


def spec_named(name: str) -> Spec:
    return next(spec for spec in CATALOGUE if spec.name == name)


def load(spec: Spec, directory: Path, dtype: torch.dtype = torch.float32) -> Reference:
    return Reference.load(small_checkpoints.write(spec, directory), dtype)


def scores_of(values: dict[int, float], rest: float) -> Tensor:
    """Return scores [1, 16]: the named experts' scores, and `rest` for all others."""
    return torch.tensor([[values.get(expert, rest) for expert in range(16)]])


def assert_routed(routing: Routing, expert_ids: list[int], weights: list[float]) -> None:
    assert routing.expert_ids.tolist() == [expert_ids]
    torch.testing.assert_close(routing.weights, torch.tensor([weights]), atol=1e-6, rtol=0)


all_specs = pytest.mark.parametrize("spec", CATALOGUE, ids=lambda spec: spec.name)


@all_specs
def test_weights_are_those_of_the_golden_file(spec: Spec) -> None:
    assert small_checkpoints.checksum(spec) == record.load(spec.name).weights_sha256


@all_specs
def test_logprobs_equal_transformers_at_every_position(spec: Spec, tmp_path: Path) -> None:
    reference, golden = load(spec, tmp_path), record.load(spec.name)
    assert {47, 48, 49} < {one.length for one in golden.passes}
    for one in golden.passes:
        logprobs = reference.logits(golden.token_ids[: one.length]).log_softmax(-1)
        expected = torch.tensor(one.top_logprobs)
        actual = logprobs.gather(-1, torch.tensor(one.top_ids))
        torch.testing.assert_close(
            actual, expected, atol=LOGPROB_TOLERANCE, rtol=0, msg=f"length {one.length}"
        )
        is_clear = expected[:, 0] - expected[:, 1] > 2 * LOGPROB_TOLERANCE
        assert logprobs.argmax(-1)[is_clear].tolist() == torch.tensor(one.top_ids)[:, 0][is_clear].tolist()


@all_specs
def test_routes_fall_on_both_sides_of_the_jitter_window(spec: Spec, tmp_path: Path) -> None:
    routings = load(spec, tmp_path).routing(record.load(spec.name).token_ids)
    assert len(routings) == spec.num_layers
    is_alone = torch.cat([routing.weights for routing in routings]) == 1
    assert is_alone.sum() >= 10
    assert (~is_alone).sum() >= 10 or spec.jitter == 0
    best = torch.cat([routing.scores.amax(-1) for routing in routings])
    assert ((best < 0).sum() >= 10) == spec.has_negative_scores


@all_specs
def test_greedy_choices_are_clear(spec: Spec, tmp_path: Path) -> None:
    best = load(spec, tmp_path).logits(record.load(spec.name).token_ids).topk(2).values
    gaps = best[:, 0] - best[:, 1]
    assert gaps.median() > 0.1
    assert (gaps < 1e-3).float().mean() < 0.03


def test_catalogue_spans_what_a_checkpoint_may_say() -> None:
    def values(name: str) -> set[object]:
        return {getattr(spec, name) for spec in CATALOGUE}

    assert len(values("name")) == len(values("seed")) == len(CATALOGUE) >= 12
    assert {(spec.attention_bias, spec.lm_head_bias) for spec in CATALOGUE} == {
        (False, False), (False, True), (True, False), (True, True),
    }  # fmt: skip
    assert {spec.num_heads // spec.num_kv_heads for spec in CATALOGUE} == {1, 2, 3, 4, 8}
    assert {(spec.dialect, spec.rope_type) for spec in CATALOGUE} == {
        ("original", "longrope"), ("original", "default"), ("newer", "longrope"), ("newer", "default"),
    }  # fmt: skip
    assert {None, 16, 24} < values("sliding_window")
    assert values("jitter") == {0.0, 0.01, 0.05, 0.2}
    assert values("stored_dtype") == {torch.float32, torch.bfloat16, torch.float16}
    assert values("architecture") == {"PhiMoEForCausalLM", "PhimoeForCausalLM"}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"dialect": "newer", "architecture": "PhimoeForCausalLM"}, id="newer-dialect"),
        pytest.param({"dialect": "newer", "original_max_at": "top"}, id="newer-dialect-limit-at-top"),
        pytest.param({"original_max_at": "rope"}, id="limit-in-rope"),
        pytest.param({"num_shards": 7}, id="seven-shards"),
    ],
)
def test_spelling_and_file_layout_do_not_change_a_bit(change: dict[str, str | int], tmp_path: Path) -> None:
    spec = spec_named("plain")
    changed = dataclasses.replace(spec, **change)  # type: ignore[arg-type]
    token_ids = record.load(spec.name).token_ids
    expected = load(spec, tmp_path / "plain").logits(token_ids)
    assert torch.equal(load(changed, tmp_path / "changed").logits(token_ids), expected)


def test_longrope_without_a_limit_is_refused() -> None:
    values = small_checkpoints.config(spec_named("limit-at-top-only"))
    del values["original_max_position_embeddings"]
    with pytest.raises(KeyError, match="original_max_position_embeddings"):
        parse_config(values)


def test_rope_list_flips_one_token_after_the_limit() -> None:
    spec = dataclasses.replace(
        CATALOGUE[0], head_dim=8, short_mscale=1.1, long_mscale=1.3, rope_theta=10000.0
    )
    config = parse_config(small_checkpoints.config(spec))
    for num_tokens, factor, mscale in ((47, 1.07, 1.1), (48, 1.07, 1.1), (49, 2.4, 1.3), (100, 2.4, 1.3)):
        cos, sin = rope_tables(config, num_tokens)
        assert cos.shape == sin.shape == (num_tokens, 8)
        # Components 1 and 5 share the second frequency, 1 / (factor * 10000 ** (2 / 8)).
        for component in (1, 5):
            angle = 20 / (factor * 10)
            assert float(cos[20, component]) == pytest.approx(mscale * math.cos(angle), abs=1e-6)
            assert float(sin[20, component]) == pytest.approx(mscale * math.sin(angle), abs=1e-6)


def test_rope_angles_are_float32_products() -> None:
    config = parse_config(small_checkpoints.config(spec_named("plain")))
    cos, _ = rope_tables(config, 100_001)
    inv_freq = torch.tensor(1 / (2.4 * 10), dtype=torch.float32)
    position = torch.tensor(100_000, dtype=torch.float32)
    rounded, exact = position * inv_freq, 100_000 / (2.4 * 10)
    assert cos.dtype == torch.float32
    assert abs(math.cos(float(rounded)) - math.cos(exact)) > 5e-5
    assert float(cos[100_000, 1]) == pytest.approx(1.3 * math.cos(float(rounded)), abs=1e-6)


def test_default_rope_never_flips() -> None:
    config = parse_config(small_checkpoints.config(spec_named("default-rope-newer")))
    short, long = rope_tables(config, ORIGINAL_MAX)[0], rope_tables(config, ORIGINAL_MAX + 1)[0]
    assert torch.equal(short, long[:ORIGINAL_MAX])
    assert float(short[20, 1]) == pytest.approx(math.cos(20 / 10), abs=1e-6)


def test_crossing_the_limit_changes_all_positions_but_the_first(tmp_path: Path) -> None:
    reference, token_ids = load(spec_named("plain"), tmp_path), record.load("plain").token_ids
    before, at, after = (reference.logits(token_ids[:n]) for n in (47, 48, 49))
    torch.testing.assert_close(at[:47], before, atol=1e-4, rtol=0)
    # The first position sees only itself, whatever its rotation.
    has_changed = (after[:48] - at).abs().amax(-1) > 1e-2
    assert has_changed.tolist() == [False] + [True] * 47


def test_window_hides_what_is_a_window_away() -> None:
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert visible(5, 3).int().tolist() == expected
    assert visible(5, None).int().tolist() == torch.ones(5, 5).tril().int().tolist()


def test_window_bounds_the_reach_of_a_token(tmp_path: Path) -> None:
    reference, token_ids = load(spec_named("window-16"), tmp_path), record.load("window-16").token_ids[:40]
    other = [(token_ids[0] + 1) % 300, *token_ids[1:]]
    has_changed = (reference.hidden(token_ids) - reference.hidden(other)).abs().amax(-1) > 1e-4
    reach = 2 * (16 - 1)  # two layers, each of which looks back 15 tokens
    assert bool(has_changed[reach])
    assert not bool(has_changed[reach + 1 :].any())


def test_greedy_is_one_full_forward_per_step_across_the_limit(tmp_path: Path) -> None:
    reference, token_ids = load(spec_named("plain"), tmp_path), record.load("plain").token_ids[:45]
    output = reference.greedy(token_ids, 6)
    assert len(output) == 6
    for token_id, logprob in output:
        logprobs = reference.logits(token_ids)[-1].log_softmax(-1)
        assert (token_id, logprob) == (int(logprobs.argmax()), float(logprobs.max()))
        token_ids = [*token_ids, token_id]
    assert len(token_ids) > ORIGINAL_MAX + 1


def test_greedy_ends_after_an_end_token(tmp_path: Path) -> None:
    reference = load(spec_named("plain"), tmp_path)
    free = reference.greedy([10, 20, 30], 6)
    end_id = free[3][0]
    assert end_id not in {token_id for token_id, _ in free[:3]}
    assert reference.greedy([10, 20, 30], 6, eos_ids=[end_id]) == free[:4]


def test_bfloat16_stays_near_float32(tmp_path: Path) -> None:
    spec = spec_named("kv-4-of-8-newer")
    token_ids = record.load(spec.name).token_ids[:ORIGINAL_MAX]
    exact, rough = (
        load(spec, tmp_path, dtype).logits(token_ids) for dtype in (torch.float32, torch.bfloat16)
    )
    difference = (exact.log_softmax(-1) - rough.log_softmax(-1)).abs()
    assert rough.dtype == torch.float32
    assert 1e-3 < float(difference.median()) < 0.2


@pytest.mark.parametrize(
    ("values", "rest", "jitter", "expert_ids", "weights"),
    [
        # No rival within 2 %: both weights are one.
        pytest.param({3: 2.0, 7: 1.0}, 0.5, 0.01, [3, 7], [1.0, 1.0], id="alone"),
        # (1.0 - 0.99) / 1.0 = 0.01 <= 0.02: a rival of the first; nobody rivals 0.99.
        pytest.param({3: 1.0, 7: 0.99}, 0.5, 0.01, [3, 7], [1 / (1 + E_MINUS_001), 1.0], id="rival-of-first"),
        # 0.99 is second; 0.98 lies (0.99 - 0.98) / 0.99 = 0.0101 below it and 0.02001 below 1.0, outside.
        pytest.param(
            {3: 1.0, 7: 0.99, 9: 0.97999}, 0.5, 0.01, [3, 7],
            [1 / (1 + E_MINUS_001), 1 / (1 + math.exp(-0.01001))], id="rival-of-second",
        ),
        # The first expert's own score is not a rival of the second, although it is near.
        pytest.param(
            {0: 1.0, 15: 1.0 - 1e-3}, -9.0, 0.05, [0, 15], [1 / (1 + math.exp(-1e-3)), 1.0],
            id="masked-first",
        ),
        # Negative maximum: the quotient's denominator is |s_i|, since clamping at a negative m does nothing:
        # 0.0204 / 1.0204 = 0.01999 is inside, which 0.0204 / |m| = 0.0204 would not be.
        pytest.param(
            {3: -1.0, 7: -1.0204}, -5.0, 0.01, [3, 7], [1 / (1 + math.exp(-0.0204)), 1.0], id="negative-max",
        ),
        # Opposite signs: |s_i| = 2 is above m = 1, so that 3 / 2 is inside 2 * 0.8, which 3 / 1 would not be.
        # The second best ties with all that are left.
        pytest.param({3: 1.0}, -2.0, 0.8, [3, 0], [1 / (1 + 15 * math.exp(-3)), 1 / 15], id="opposite-signs"),
        # Two of the same score: the lower id is first, with half; the other has no rival left.
        pytest.param({5: 1.0, 11: 1.0}, 0.0, 0.01, [5, 11], [0.5, 1.0], id="tie-of-two"),
        pytest.param({4: 1.0, 5: 1.0, 6: 1.0}, 0.0, 0.01, [4, 5], [1 / 3, 0.5], id="tie-of-three"),
        pytest.param({2: 1.0, 9: 0.5, 12: 0.5}, 0.0, 0.01, [2, 9], [1.0, 0.5], id="tie-for-second"),
        # Zero over zero is NaN, which drops nobody.
        pytest.param({}, 0.0, 0.01, [0, 1], [1 / 16, 1 / 15], id="all-zero"),
        pytest.param({6: 0.0}, -1.0, 0.01, [6, 0], [1.0, 1 / 15], id="zero-max"),
        # Without jitter only an exact tie is a rival.
        pytest.param({3: 1.0, 7: 0.999999}, 0.5, 0.0, [3, 7], [1.0, 1.0], id="no-jitter"),
        pytest.param({3: 1.0, 7: 1.0}, 0.5, 0.0, [3, 7], [0.5, 1.0], id="no-jitter-tie"),
        # Exactly on the edge is inside: (1.0 - 0.5) / 1.0 = 2 * 0.25.
        pytest.param({3: 1.0, 7: 0.5}, -9.0, 0.25, [3, 7], [1 / (1 + math.exp(-0.5)), 1.0], id="edge"),
    ],
)  # fmt: skip
def test_router_by_hand(
    values: dict[int, float], rest: float, jitter: float, expert_ids: list[int], weights: list[float]
) -> None:
    assert_routed(sparse_mixer(scores_of(values, rest), jitter), expert_ids, weights)


def test_router_widens_bfloat16_scores_before_it_divides() -> None:
    # (1.9453125 - 1.90625) / 1.9453125 = 0.02008 is outside; a quotient rounded to bfloat16 would be inside.
    outside = scores_of({3: 1.9453125, 7: 1.90625}, 0.5).bfloat16()
    assert_routed(sparse_mixer(outside, 0.01), [3, 7], [1.0, 1.0])
    inside = scores_of({3: 1.0, 7: 0.98046875}, 0.5).bfloat16()
    routing = sparse_mixer(inside, 0.01)
    assert routing.weights.dtype == routing.scores.dtype == torch.float32
    assert_routed(routing, [3, 7], [1 / (1 + math.exp(-0.01953125)), 1.0])


def test_router_treats_each_token_by_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(50, 16, generator=generator)
    together = sparse_mixer(scores, 0.05)
    for token in range(50):
        alone = sparse_mixer(scores[token : token + 1], 0.05)
        assert torch.equal(alone.expert_ids[0], together.expert_ids[token])
        torch.testing.assert_close(alone.weights[0], together.weights[token])
