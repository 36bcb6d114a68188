"""What a user types: one file or folder for each command of `phimoe`.

Open `serve.py` first; `cluster/__main__.py` maps the names of commands to these modules.
"""
