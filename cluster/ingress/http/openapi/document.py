"""Every HTTP route with its body, its answer and its errors."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from cluster.ingress.auth import Access
from cluster.ingress.http.openapi import answers, bodies
from cluster.ingress.http.openapi.answers import Schema
from cluster.openai.limits import Limits

_ALWAYS = (408, 413, 431, 500)
"""Of every route: a body or header that is too long or late may come with any of them; 500 is a defect."""
_KEYED = (401, 429)
_OPERATED = (401, 403)
_BODY = (400,)
_SERVED = (503,)
_GENERATED = (404, 503, 504)


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """One method of one path."""

    summary: str
    answer: Schema
    body: Schema | None = None
    is_body_required: bool = True
    is_streamed: bool = False
    """Whether it may answer with server-sent events."""
    errors: tuple[int, ...] = ()


def operations(limits: Limits) -> dict[tuple[str, str], Operation]:
    """(path as the route table has it, method) -> what is to be said of it."""
    return {**_openai(limits), **_service(), **_admin()}


def openapi_document(
    access: dict[tuple[str, str], Access], limits: Limits, version: str, *, has_keys: bool
) -> dict[str, Any]:
    """The document. `access` has every route that is served; one that is not described is a KeyError.

    `has_keys` says whether this service asks for keys at all.
    """
    described, paths = operations(limits), dict[str, dict[str, Any]]()
    for (path, method), kind in access.items():
        shown = path + "{model}" if path.endswith("/") else path
        paths.setdefault(shown, {})[method.lower()] = _operation(
            path, described[path, method], kind, has_keys
        )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "PhiMoE",
            "version": version,
            "description": "OpenAI's protocol before a PhiMoE cluster. HEAD is answered wherever GET is.",
        },
        "paths": paths,
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": answers.ERROR},
        },
    }


def _openai(limits: Limits) -> dict[tuple[str, str], Operation]:
    generated = (*_BODY, *_GENERATED)
    tokenized = (*_BODY, 404, *_SERVED)
    return {
        ("/v1/models", "GET"): Operation(
            summary="The served model", answer=answers.model_list(), errors=_SERVED
        ),
        ("/v1/models/", "GET"): Operation(
            summary="One model", answer=answers.model_card(), errors=(404, *_SERVED)
        ),
        ("/v1/completions", "POST"): Operation(
            summary="Continue prompts",
            body=bodies.completion_body(limits),
            answer=answers.generation("text_completion"),
            is_streamed=True,
            errors=generated,
        ),
        ("/v1/chat/completions", "POST"): Operation(
            summary="Answer a conversation",
            body=bodies.chat_body(limits),
            answer=answers.generation("chat.completion"),
            is_streamed=True,
            errors=generated,
        ),
        ("/tokenize", "POST"): Operation(
            summary="Text or conversation to token ids",
            body=bodies.tokenize_body(limits),
            answer=answers.tokens(),
            errors=tokenized,
        ),
        ("/detokenize", "POST"): Operation(
            summary="Token ids to text",
            body=bodies.detokenize_body(limits),
            answer=answers.text(),
            errors=tokenized,
        ),
    }


def _service() -> dict[tuple[str, str], Operation]:
    return {
        ("/health", "GET"): Operation(
            summary="Whether a request would be answered", answer=answers.health(), errors=_SERVED
        ),
        ("/version", "GET"): Operation(summary="The version", answer=answers.version()),
        ("/openapi.json", "GET"): Operation(summary="This document", answer=answers.document()),
        ("/cluster", "GET"): Operation(summary="All actors", answer=answers.cluster(), errors=_SERVED),
        ("/load", "GET"): Operation(summary="How busy the service is", answer=answers.load()),
    }


def _admin() -> dict[tuple[str, str], Operation]:
    def operation(summary: str, body: Schema, is_body_required: bool = False) -> Operation:
        return Operation(
            summary=summary,
            body=body,
            is_body_required=is_body_required,
            answer=answers.cluster(),
            errors=(*_BODY, 409, *_SERVED, 504),
        )

    return {
        ("/admin/status", "GET"): Operation(summary="All actors", answer=answers.cluster(), errors=_SERVED),
        ("/admin/drain", "POST"): operation("Finish what has begun, begin nothing new", bodies.drain_body()),
        ("/admin/rebalance", "POST"): operation(
            "Place the experts anew by measured load", bodies.empty_body()
        ),
        ("/admin/scale", "POST"): operation("Change the number of expert actors", bodies.scale_body(), True),
        ("/admin/restart", "POST"): operation("Restart all actors one by one", bodies.empty_body()),
    }


def _operation(path: str, operation: Operation, access: Access, has_keys: bool) -> dict[str, Any]:
    wants_key = has_keys and access is not Access.PUBLIC
    keyed = {Access.PUBLIC: (), Access.CLIENT: _KEYED, Access.ADMIN: _OPERATED}[access] if has_keys else ()
    # Without keys admin is refused to other hosts, and generation, which counts all requests, when too many are under way.
    unkeyed = {"admin": (403,)}.get(access.value, ()) + ((429,) if operation.is_streamed else ())
    content: dict[str, Any] = {"application/json": {"schema": operation.answer}}
    if operation.is_streamed:
        # Of each event.
        content["text/event-stream"] = {"schema": answers.EVENT}
    responses: dict[str, Any] = {"200": {"description": "OK", "content": content}}
    for status in sorted({*_ALWAYS, *keyed, *unkeyed, *operation.errors}):
        responses[str(status)] = {
            "description": HTTPStatus(status).phrase,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
        }
    described: dict[str, Any] = {
        "summary": operation.summary,
        "security": [{"bearer": []}] if wants_key else [],
        "responses": responses,
    }
    if path.endswith("/"):
        described["parameters"] = [
            {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        ]
    if operation.body is not None:
        described["requestBody"] = {
            "required": operation.is_body_required,
            "content": {"application/json": {"schema": operation.body}},
        }
    return described
