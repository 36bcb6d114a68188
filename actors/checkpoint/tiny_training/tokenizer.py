"""The tiny model's tokenizer: byte-level BPE with one token per digit.

Since it works on bytes, any text is unchanged after encoding and decoding.
"""

from random import Random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from actors.checkpoint.tiny_training.questions import Question, draw_question, draw_system

VOCAB_SIZE = 512
SPECIAL_TOKENS = (
    "<unk>",
    "<s>",
    "</s>",
    "<|endoftext|>",
    "<|assistant|>",
    "<|system|>",
    "<|end|>",
    "<|user|>",
)
"""The special tokens in the order of their ids, from 0."""

# The pieces are words, digits and runs of signs, each with the space before it, and the other white space.
_PIECES = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' and message['content'] %}"
    "{{ '<|system|>\\n' + message['content'] + '<|end|>\\n' }}"
    "{% elif message['role'] == 'user' %}{{ '<|user|>\\n' + message['content'] + '<|end|>\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>\\n' + message['content'] + '<|end|>\\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)


def train_tokenizer(seed: int) -> Tokenizer:
    """Train a tokenizer of VOCAB_SIZE tokens on drawn questions; equal seeds give equal tokenizers."""
    tokenizer = Tokenizer(models.BPE(unk_token=None, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        min_frequency=1,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = Random(seed)
    texts = [text for _ in range(4000) for turn in [draw_question(rng)] for text in (turn.text, turn.answer)]
    texts += [system for _ in range(300) for system in [draw_system(rng)] if system is not None]
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the id of each of SPECIAL_TOKENS."""
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    return {token: vocab[token] for token in SPECIAL_TOKENS}


class ChatEncoder:
    """Encodes conversations as chat template and tokenizer would, and marks the tokens to learn."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._cache: dict[str, list[int]] = {}
        self._newline: int
        (self._newline,) = tokenizer.encode("\n").ids
        ids = special_ids(tokenizer)
        self._system, self._user = ids["<|system|>"], ids["<|user|>"]
        self._assistant, self.end_id = ids["<|assistant|>"], ids["<|end|>"]

    def system(self, text: str) -> list[int]:
        """Return the ids of the system message that opens a conversation."""
        return [self._system, self._newline, *self._encode(text), self.end_id, self._newline]

    def prompt(self, text: str) -> list[int]:
        """Return the ids of a user's message and of the header of the answer."""
        end = [self.end_id, self._newline, self._assistant, self._newline]
        return [self._user, self._newline, *self._encode(text), *end]

    def answer(self, text: str) -> list[int]:
        """Return the ids of an answer including its end token: the tokens that the model must produce."""
        return [*self._encode(text), self.end_id]

    def turn(self, question: Question) -> tuple[list[int], list[bool]]:
        """Return the ids of a whole turn and, for each of its tokens, whether the model must produce it."""
        prompt, answer = self.prompt(question.text), self.answer(question.answer)
        ids = [*prompt, *answer, self._newline]
        return ids, [False] * len(prompt) + [True] * len(answer) + [False]

    def _encode(self, text: str) -> list[int]:
        if text not in self._cache:
            if len(self._cache) > 100_000:
                self._cache.clear()
            self._cache[text] = self._tokenizer.encode(text).ids
        return self._cache[text]
