"""The OpenAPI document. It is made from the served routes, so that it describes all of them and no others."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from cluster.ingress.auth import Access
from cluster.ingress.http.openapi import answers
from cluster.ingress.http.route import Route

_EVERY_ROUTE_ERRORS = (408, 413, 431, 500)
"""A route may refuse a body or a header that is too large or too late; 500 means a defect in the service."""
_KEY_ERRORS = {Access.PUBLIC: (), Access.CLIENT: (401, 429), Access.ADMIN: (401, 403)}
"""Further errors of a route in a service that asks for keys."""


def openapi_document(routes: Iterable[Route], version: str, *, has_keys: bool) -> dict[str, Any]:
    """Return the document of these routes. `has_keys` says whether this service asks for keys at all."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        path = route.path + "{model}" if route.path.endswith("/") else route.path
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, has_keys)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "PhiMoE",
            "version": version,
            "description": "OpenAI's protocol, served by a PhiMoE cluster. HEAD is answered wherever GET is.",
        },
        "paths": paths,
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": answers.ERROR},
        },
    }


def _operation(route: Route, has_keys: bool) -> dict[str, Any]:
    wants_key = has_keys and route.access is not Access.PUBLIC
    described: dict[str, Any] = {
        "summary": route.summary,
        "security": [{"bearer": []}] if wants_key else [],
        "responses": _responses(route, has_keys),
    }
    if route.path.endswith("/"):
        described["parameters"] = [
            {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        ]
    if route.body is not None:
        described["requestBody"] = {
            "required": route.is_body_required,
            "content": {"application/json": {"schema": route.body}},
        }
    return described


def _responses(route: Route, has_keys: bool) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": route.answer}}
    if route.is_streamed:
        # This is the schema of one event of the stream.
        content["text/event-stream"] = {"schema": answers.EVENT}
    responses: dict[str, Any] = {"200": {"description": "OK", "content": content}}
    for status in sorted({*_EVERY_ROUTE_ERRORS, *_access_errors(route, has_keys), *route.errors}):
        responses[str(status)] = {
            "description": HTTPStatus(status).phrase,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
        }
    return responses


def _access_errors(route: Route, has_keys: bool) -> tuple[int, ...]:
    """Return the statuses with which a caller may be refused before the handler runs.

    Without keys, operators on other hosts are refused. With or without keys, a request for generated text is
    refused while too many requests are under way.
    """
    keyed = _KEY_ERRORS[route.access] if has_keys else ()
    other_host = (403,) if route.access is Access.ADMIN else ()
    crowded = (429,) if route.is_streamed else ()
    return (*keyed, *other_host, *crowded)
