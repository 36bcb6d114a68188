"""The last stage of a request: generated tokens become text, and text becomes OpenAI's response bodies.

Open `assembler.py` first; `responses.py` has the shapes.
"""
