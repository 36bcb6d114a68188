"""The second stage of a request: from a `ParsedRequest` to token ids, by chat template and model limits.

Open `prepare.py` first.
"""
