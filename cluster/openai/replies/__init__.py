"""The last stage of a request: from generated tokens to text, and from text to OpenAI's response bodies.

Open `assembler.py` first; `responses.py` has the shapes.
"""
