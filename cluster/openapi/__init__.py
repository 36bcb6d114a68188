"""The OpenAPI document that /openapi.json serves: built from the ranges, limits and errors that the code itself uses."""
