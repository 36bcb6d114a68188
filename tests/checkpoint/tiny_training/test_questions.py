import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import jinja2.sandbox
import pytest
from tokenizers import Tokenizer

from actors import checkpoint
from actors.checkpoint.tiny_training.questions import (
    MIN_TOKENS_PER_TURN,
    Case,
    Question,
    draw_cases,
    draw_fresh_question,
    draw_question,
)
from actors.checkpoint.tiny_training.tokenizer import ChatEncoder

TINY = Path(checkpoint.__file__).parent / "tiny"
ARITHMETIC = ("addition", "subtraction", "multiplication", "division")


def fact_of(text: str) -> str:
    """Return the equation or the arithmetic inside a question, without spaces."""
    match = re.search(r"[-\dx][-+*/ \dx]*(= -?\d+|=-?\d+)?", re.sub(r"(for|is) x\b|Find x", "", text))
    assert match is not None, text
    return match[0].replace(" ", "").removesuffix("=")


def solve(fact: str) -> str:
    if "=" in fact:
        (match,) = re.finditer(r"(\d*)x([-+]\d+)?=(-?\d+)", fact)
        x, rest = divmod(int(match[3]) - int(match[2] or 0), int(match[1] or 1))
        assert rest == 0, fact
        return f"x = {x}"
    left, sign, right = re.fullmatch(r"(\d+)([-+*/x])(\d+)", fact).groups()  # type: ignore[union-attr]
    a, b = int(left), int(right)
    if sign == "/":
        assert a % b == 0, fact
    return str({"+": a + b, "-": a - b, "*": a * b, "x": a * b, "/": a // (b or 1)}[sign])


@pytest.mark.parametrize("draw", [draw_question, draw_fresh_question], ids=["training", "fresh"])
def test_every_answer_is_right(draw: Callable[[Random], Question]) -> None:
    rng = Random(1)
    for _ in range(3000):
        question = draw(rng)
        if question.kind != "talk":
            assert solve(fact_of(question.text)) == question.answer, question


def test_fresh_equations_and_sums_occur_in_no_wording_of_the_training_split() -> None:
    rng = Random(2)
    trained = {fact_of(q.text) for q in (draw_question(rng) for _ in range(30_000)) if q.kind != "talk"}
    for kind in ("equation", "addition", "subtraction"):
        fresh = {fact_of(draw_fresh_question(rng, kind).text) for _ in range(1000)}
        assert len(fresh) > 300
        assert not fresh & trained


def test_fresh_products_and_quotients_are_unknown_wordings_of_known_facts() -> None:
    rng = Random(3)
    questions = [draw_question(rng) for _ in range(30_000)]
    texts = {q.text for q in questions}
    for kind in ("multiplication", "division"):
        fresh = [draw_fresh_question(rng, kind) for _ in range(300)]
        assert not texts & {q.text for q in fresh}
        known = {fact_of(q.text).replace("x", "*") for q in questions if q.kind == kind}
        assert {fact_of(q.text).replace("x", "*") for q in fresh} <= known


def test_the_same_seed_gives_the_same_cases_and_another_seed_others() -> None:
    def draw(seed: int) -> list[Case]:
        return draw_cases(seed, num_cases=40, num_behind_crossing=10, crossing_tokens=128)

    assert draw(7) == draw(7)
    assert {case.question for case in draw(7)} != {case.question for case in draw(8)}


def test_cases_ask_equations_as_often_as_arithmetic_and_never_talk() -> None:
    cases = draw_cases(9, num_cases=2000, num_behind_crossing=0, crossing_tokens=128)
    kinds = Counter(case.question.kind for case in cases)
    assert set(kinds) == {"equation", *ARITHMETIC}
    assert 900 < kinds["equation"] < 1100
    assert min(kinds[kind] for kind in ARITHMETIC) > 200


def test_the_last_cases_follow_a_history_beyond_the_crossing() -> None:
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    encoder = ChatEncoder(tokenizer)
    cases = draw_cases(10, num_cases=200, num_behind_crossing=60, crossing_tokens=128)
    assert [bool(case.history) for case in cases] == [False] * 140 + [True] * 60
    for case in cases:
        lengths = [len(encoder.turn(turn)[0]) for turn in case.history]
        assert sum(lengths) > 128 or not case.history
        assert all(length >= MIN_TOKENS_PER_TURN for length in lengths)


def test_messages_hold_the_history_in_order_and_end_with_the_question() -> None:
    (case,) = draw_cases(11, num_cases=1, num_behind_crossing=1, crossing_tokens=128)
    messages = case.messages()
    turns = messages[len(messages) % 2 == 0 :]
    assert [m["content"] for m in turns[:-1:2]] == [turn.text for turn in case.history]
    assert [m["content"] for m in turns[1::2]] == [turn.answer for turn in case.history]
    assert turns[-1] == {"role": "user", "content": case.question.text}
    assert [m["role"] for m in turns] == ["user", "assistant"] * len(case.history) + ["user"]


def test_training_sees_the_tokens_that_the_chat_template_makes() -> None:
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    encoder = ChatEncoder(tokenizer)
    source = json.loads((TINY / "tokenizer_config.json").read_text())["chat_template"]
    template = jinja2.sandbox.SandboxedEnvironment().from_string(source)
    for case in draw_cases(12, num_cases=20, num_behind_crossing=10, crossing_tokens=128):
        ids = [] if case.system is None else encoder.system(case.system)
        for turn in case.history:
            ids += encoder.turn(turn)[0]
        text = template.render(messages=case.messages(), add_generation_prompt=True)
        assert tokenizer.encode(text).ids == ids + encoder.prompt(case.question.text)


def test_the_shipped_tokenizer_keeps_any_text() -> None:
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    for text in ["  two  spaces \n\n\ttab ", "Größe 漢字 🙂", "2x+13 = -7", "\x00\x7f", "don't"]:
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert len(tokenizer.encode("12345").ids) == 5
