"""The gRPC interface: `serving.proto` for clients, `admin.proto` for operators, and their generated modules.

Open `serving.proto` first; `python -m protos.generate` writes the modules again after a change.
"""
