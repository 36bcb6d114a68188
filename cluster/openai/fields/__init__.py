"""Every field of every request body, declared once; `sampling.py` is the file to open first.

Parsing, the served OpenAPI document, the conversion from gRPC and REQUEST_FIELDS.md follow from these files.
`cluster/openai/kinds/objects.py` says how a field is declared. A field's name in Python is its name in gRPC;
where its name in JSON differs, `msgspec.field(name=...)` says so.
"""
