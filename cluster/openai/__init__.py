"""OpenAI's protocol: request bodies to token ids, generated tokens to response bodies. It sends nothing.

Open `request.py` first; `fields` declares what a body may hold, and `parsing`, `prompts` and `replies` are the
stages of a request.
"""
