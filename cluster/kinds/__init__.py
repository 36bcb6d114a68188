"""The kinds of values that a request's fields may have. A kind checks a value and makes its JSON Schema.

Open `kind.py` first. The kinds are in `scalars.py`, `containers.py` and `special.py`; `objects.py` reads
whole JSON objects.
"""
