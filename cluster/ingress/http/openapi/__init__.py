"""The OpenAPI document that the service shows at `/openapi.json`, made from the routes.

Open `document.py` first.
"""
