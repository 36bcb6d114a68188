"""The first stage of a request: it turns a JSON body into a `ParsedRequest` or an error that names the field.

Open `parse.py` first.
"""
