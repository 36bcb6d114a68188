"""The second stage of a request: chat template and tokenizer turn a `ParsedRequest` into token ids.

Open `prepare.py` first.
"""
