"""REQUEST_FIELDS.md is what the declaration says."""

from __future__ import annotations

from cluster.openai.fields.document import PATH, document


def test_the_documented_fields_are_those_of_the_declaration() -> None:
    text = document()
    assert "| `min_p` | number in [0, 1] |" in text
    assert PATH.read_text(encoding="utf-8") == text, "run python -m cluster.openai.fields.document"
