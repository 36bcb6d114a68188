"""The kinds of values that the fields of a body may have. A kind checks a value and makes its JSON Schema.

Open `kind.py` first. The kinds are in `scalars.py` and `containers.py`; `objects.py` reads whole JSON objects
whose fields a Struct declares. Bodies of OpenAI's requests and messages of operators are declared with them.
"""
