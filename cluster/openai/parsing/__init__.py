"""The first stage of a request: from a JSON body to a `ParsedRequest`, or to an error that names the field.

Open `parse.py` first.
"""
