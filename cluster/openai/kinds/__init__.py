"""What the value of a request's field may be: a kind checks a value and has its JSON Schema.

`kind.py` is the file to open first. The kinds are in `scalars.py`, `containers.py` and `special.py`;
`objects.py` reads whole JSON objects.
"""
