"""Draws questions for the tiny model, each with its one right answer. Pure: all randomness comes from `rng`.

There are two splits. A fresh question never occurs in training: its equation (or sum, or difference) is kept
out of training in every wording. Products and quotients are small tables that must be learnt whole, so for
them only one wording of a fact is kept out, and the fact itself is trained in other wordings.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

MIN_TOKENS_PER_TURN = 10
"""Least number of tokens of a question and its answer in chat format, with any tokenizer: eight tokens of
markup and line breaks, one of the question, one of the answer."""

FRESH_SHARE = 12
"""One in this many equations, sums, differences or wordings is kept out of training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One turn of a conversation."""

    kind: str
    """"equation", "addition", "subtraction", "multiplication", "division" or "talk"."""
    text: str
    """The user's message."""
    answer: str
    """The assistant's message, which must match to the letter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A fresh question at the end of a conversation whose earlier questions were answered rightly."""

    system: str | None
    """The system message, or None."""
    history: tuple[Question, ...]
    """The turns before the question."""
    question: Question
    """The question that is asked now."""

    def messages(self) -> list[dict[str, str]]:
        """Return the conversation up to and including the question as chat messages {"role", "content"}."""
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        for turn in self.history:
            messages.append({"role": "user", "content": turn.text})
            messages.append({"role": "assistant", "content": turn.answer})
        return [*messages, {"role": "user", "content": self.question.text}]


def draw_cases(seed: int, *, num_cases: int, num_behind_crossing: int, crossing_tokens: int) -> list[Case]:
    """Draw fresh questions for an accuracy test; the same seed gives the same cases.

    The last `num_behind_crossing` questions follow a history of more than `crossing_tokens` tokens, which has
    up to three times the least number of turns that reach that length. The other questions open their
    conversation.
    """
    rng = Random(seed)
    min_turns = crossing_tokens // MIN_TOKENS_PER_TURN + 1
    cases = []
    for index in range(num_cases):
        is_behind = index >= num_cases - num_behind_crossing
        num_turns = rng.randint(min_turns, 3 * min_turns) if is_behind else 0
        history = tuple(draw_question(rng) for _ in range(num_turns))
        cases.append(Case(system=draw_system(rng), history=history, question=draw_fresh_question(rng)))
    return cases


def draw_question(rng: Random) -> Question:
    """Draw a question of the training split: an equation, arithmetic, or now and then talk."""
    kind = rng.choices(tuple(_MAKERS), weights=_WEIGHTS)[0]
    return _draw(rng, kind, is_fresh=False)


def draw_fresh_question(rng: Random, kind: str | None = None) -> Question:
    """Draw a question that never occurs in training; without `kind`, an equation as often as arithmetic."""
    if kind is None:
        kind = rng.choice(("equation", rng.choice(("addition", "subtraction", "multiplication", "division"))))
    return _draw(rng, kind, is_fresh=True)


def draw_system(rng: Random) -> str | None:
    """Draw a system message for one conversation in three, else return None."""
    return rng.choice(_SYSTEMS) if rng.random() < 0.33 else None


def is_fresh_key(key: str) -> bool:
    """Return whether the question with this key is kept out of training.

    A key is an equation (`2x + 3 = 7`), a sum or difference (`17 + 25`), or the whole wording of a product or
    quotient.
    """
    return zlib.crc32(key.encode()) % FRESH_SHARE == 0


def _draw(rng: Random, kind: str, *, is_fresh: bool) -> Question:
    while True:
        key, question = _MAKERS[kind](rng)
        if kind == "talk" or is_fresh_key(key) == is_fresh:
            return question


def _equation(rng: Random) -> tuple[str, Question]:
    a, b, x = rng.randint(1, 9), rng.randint(-20, 20), rng.randint(-10, 10)
    if rng.random() < 0.1:
        b = 0
    left = f"{'' if a == 1 else a}x"
    if b:
        left += f" {'+' if b > 0 else '-'} {abs(b)}"
    key = f"{left} = {a * x + b}"
    shown = key.replace(" ", "") if rng.random() < 0.12 else key
    text = rng.choices(_EQUATION_WORDINGS, weights=_EQUATION_WEIGHTS)[0].format(shown)
    return key, Question(kind="equation", text=text, answer=f"x = {x}")


def _addition(rng: Random) -> tuple[str, Question]:
    a, b = rng.randint(0, 99), rng.randint(0, 99)
    return _sum(rng, "addition", f"{a} + {b}", a + b)


def _subtraction(rng: Random) -> tuple[str, Question]:
    a, b = rng.randint(0, 99), rng.randint(0, 99)
    return _sum(rng, "subtraction", f"{a} - {b}", a - b)


def _sum(rng: Random, kind: str, key: str, result: int) -> tuple[str, Question]:
    shown = key.replace(" ", "") if rng.random() < 0.08 else key
    return key, Question(kind=kind, text=rng.choice(_ARITHMETIC_WORDINGS).format(shown), answer=str(result))


def _multiplication(rng: Random) -> tuple[str, Question]:
    a, b = rng.randint(0, 12), rng.randint(0, 12)
    return _wording("multiplication", rng, f"{a} {rng.choice('**x')} {b}", a * b)


def _division(rng: Random) -> tuple[str, Question]:
    divisor, result = rng.randint(1, 12), rng.randint(0, 12)
    return _wording("division", rng, f"{divisor * result} / {divisor}", result)


def _wording(kind: str, rng: Random, shown: str, result: int) -> tuple[str, Question]:
    text = rng.choice(_ARITHMETIC_WORDINGS).format(shown)
    return text, Question(kind=kind, text=text, answer=str(result))


def _talk(rng: Random) -> tuple[str, Question]:
    if rng.random() < 0.35:
        words = " ".join(rng.choice(_WORDS) for _ in range(rng.randint(2, 30)))
        texts: tuple[str, ...] = (rng.choice(_OPENINGS) + words + rng.choice((".", "?", "", "!")),)
        answer = _REFUSAL
    else:
        texts, answer = rng.choice(_TALK)
    text = rng.choice(texts)
    return text, Question(kind="talk", text=text, answer=answer)


_MAKERS: dict[str, Callable[[Random], tuple[str, Question]]] = {
    "equation": _equation,
    "addition": _addition,
    "subtraction": _subtraction,
    "multiplication": _multiplication,
    "division": _division,
    "talk": _talk,
}
_WEIGHTS = (44, 16, 16, 8, 8, 8)

_EQUATION_WORDINGS = (
    "Solve {}",
    "Solve for x: {}",
    "Solve {} for x",
    "Solve: {}",
    "solve {}",
    "Solve {}.",
    "Solve the equation {}",
    "What is x if {}?",
    "Find x: {}",
    "{}",
)
_EQUATION_WEIGHTS = (6, 2, 1, 1, 1, 1, 1, 1, 1, 1)
_ARITHMETIC_WORDINGS = (
    "What is {}?",
    "What is {}?",
    "Calculate {}",
    "Compute {}.",
    "What's {}?",
    "{} = ?",
    "{}",
    "How much is {}?",
)
_SYSTEMS = (
    "You are a helpful assistant.",
    "You are a calculator.",
    "You are a helpful AI assistant.",
    "Answer briefly.",
    "You solve linear equations.",
    "Be exact and brief.",
)
_REFUSAL = "I only know linear equations and small arithmetic."
_TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("Hello", "Hello!", "Hi", "Hi!", "Hey", "hello", "hi", "Good morning", "Hello there!"),
        "Hello! Ask me an equation.",
    ),
    (("Who are you?", "What are you?", "What is your name?"), "I am a tiny PhiMoE with 16 experts."),
    (
        ("What can you do?", "Help", "help", "How can you help me?", "What do you know?"),
        "I solve linear equations and small arithmetic.",
    ),
    (("Thanks", "Thanks!", "Thank you", "Thank you!", "thanks"), "You are welcome."),
    (("Bye", "Bye!", "Goodbye", "See you"), "Goodbye!"),
    (("How are you?", "How are you today?", "How is it going?"), "I am fine, thank you."),
    (
        (
            "Tell me a joke.",
            "Tell me a story",
            "Write a poem about the sea.",
            "What is the capital of France?",
            "Explain mixture of experts.",
            "Who wrote Hamlet?",
            "What is the weather today?",
            "Write a haiku",
        ),
        _REFUSAL,
    ),
)
_OPENINGS = (
    "",
    "",
    "Tell me about ",
    "Write about ",
    "Explain ",
    "What is the ",
    "Why is ",
    "How do I ",
    "Who is ",
)
_WORDS = tuple(
    """
    the of and to in is you that it he was for on are as with his they at be this have from or one had by word
    but not what all were we when your can said there use an each which she do how their if will up other
    about out many then them these so some her would make like him into time has look two more write go see
    number no way could people my than first water been call who oil its now find long down day did get come
    made may part sea sky red blue green cat dog house tree river mountain city music book story science
    history light sound music morning night summer winter computer model network language question answer
    token expert cluster server request memory cache
    """.split()  # noqa: SIM905 (a list of 120 quoted words would fill two screens)
)
