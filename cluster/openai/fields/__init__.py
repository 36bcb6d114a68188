"""Every field of every request body is declared here, once. Open `sampling.py` first.

Parsing, the served OpenAPI document, the conversion from gRPC and REQUEST_FIELDS.md follow from these files.
`cluster/kinds/objects.py` says how a field is declared, and `special.py` has the kinds that only one field
uses. A field has the same name in Python and in gRPC; if its name in JSON differs, `msgspec.field(name=...)`
gives that.
"""
