"""OpenAI's protocol: it turns request bodies into token ids, and generated tokens into response bodies.

Nothing is sent from here. Open `request.py` first; `fields` declares what a body may hold, and `parsing`,
`prompts` and `replies` are the stages of a request.
"""
