"""Every HTTP route with its description: OpenAI's routes, the service's own and the operators' routes."""

from __future__ import annotations

from cluster.config.request_limits import Limits
from cluster.ingress.admin import Admin
from cluster.ingress.admin_bodies import OPERATION_BODIES
from cluster.ingress.auth import Access, Authenticator
from cluster.ingress.http.asgi import BodyLimits, HttpApp
from cluster.ingress.http.handlers import AdminHandlers, Handlers, package_version
from cluster.ingress.http.openapi import answers
from cluster.ingress.http.openapi.bodies import tokenize_body
from cluster.ingress.http.openapi.document import openapi_document
from cluster.ingress.http.route import HttpRequest, HttpResponse, Route
from cluster.ingress.service import Service
from cluster.openai.fields.bodies import CHAT, DETOKENIZE, ECHO
from cluster.supervisor.operations.messages import OPERATIONS, Operation

_GENERATION_ERRORS = (400, 404, 503, 504)
_TOKENIZER_ERRORS = (400, 404, 503)


def http_app(service: Service, authenticator: Authenticator) -> HttpApp:
    """Return the ASGI application of one ingress replica."""
    config = service.config
    limits = BodyLimits(max_bytes=config.max_body_bytes, timeout_seconds=config.body_timeout_seconds)
    return HttpApp(routes(service, authenticator), authenticator, limits)


def routes(service: Service, authenticator: Authenticator) -> tuple[Route, ...]:
    """Return every route of one ingress replica.

    The last route serves the document that describes them all.
    """

    async def serve_document(request: HttpRequest) -> HttpResponse:
        return HttpResponse(
            value=openapi_document(every_route, package_version(), has_keys=authenticator.has_keys)
        )

    handlers = Handlers(service)
    document_route = Route(
        method="GET",
        path="/openapi.json",
        access=Access.PUBLIC,
        summary="This document",
        answer=answers.document(),
        handler=serve_document,
    )
    every_route = (
        *_openai_routes(handlers, service.limits),
        *_service_routes(handlers),
        *_admin_routes(AdminHandlers(Admin(service)), service.limits),
        document_route,
    )
    return every_route


def _openai_routes(handlers: Handlers, limits: Limits) -> tuple[Route, ...]:
    return (
        Route(
            method="GET",
            path="/v1/models",
            summary="The served model",
            answer=answers.model_list(),
            errors=(503,),
            handler=handlers.models,
        ),
        Route(
            method="GET",
            path="/v1/models/",
            summary="One model",
            answer=answers.model_card(),
            errors=(404, 503),
            handler=handlers.model,
        ),
        Route(
            method="POST",
            path="/v1/completions",
            summary="Continue prompts",
            body=ECHO.schema(limits),
            answer=answers.generation("text_completion"),
            is_streamed=True,
            errors=_GENERATION_ERRORS,
            handler=handlers.completions,
        ),
        Route(
            method="POST",
            path="/v1/chat/completions",
            summary="Answer a conversation",
            body=CHAT.schema(limits),
            answer=answers.generation("chat.completion"),
            is_streamed=True,
            errors=_GENERATION_ERRORS,
            handler=handlers.chat_completions,
        ),
        Route(
            method="POST",
            path="/tokenize",
            summary="Text or conversation to token ids",
            body=tokenize_body(limits),
            answer=answers.tokens(),
            errors=_TOKENIZER_ERRORS,
            handler=handlers.tokenize,
        ),
        Route(
            method="POST",
            path="/detokenize",
            summary="Token ids to text",
            body=DETOKENIZE.schema(limits),
            answer=answers.text(),
            errors=_TOKENIZER_ERRORS,
            handler=handlers.detokenize,
        ),
    )


def _service_routes(handlers: Handlers) -> tuple[Route, ...]:
    return (
        Route(
            method="GET",
            path="/health",
            access=Access.PUBLIC,
            summary="Whether a request would be answered",
            answer=answers.health(),
            errors=(503,),
            handler=handlers.health,
        ),
        Route(
            method="GET",
            path="/version",
            access=Access.PUBLIC,
            summary="The version",
            answer=answers.version(),
            handler=handlers.version,
        ),
        Route(
            method="GET",
            path="/cluster",
            summary="All actors",
            answer=answers.cluster(),
            errors=(503,),
            handler=handlers.cluster,
        ),
        Route(
            method="GET",
            path="/load",
            summary="How busy the service is",
            answer=answers.load(),
            handler=handlers.load,
        ),
    )


def _admin_routes(handlers: AdminHandlers, limits: Limits) -> tuple[Route, ...]:
    status = Route(
        method="GET",
        path="/admin/status",
        access=Access.ADMIN,
        summary="All actors",
        answer=answers.cluster(),
        errors=(503,),
        handler=handlers.status,
    )
    return (status, *(_operation_route(operation, handlers, limits) for operation in OPERATIONS))


def _operation_route(operation: type[Operation], handlers: AdminHandlers, limits: Limits) -> Route:
    body = OPERATION_BODIES[operation].schema(limits)
    return Route(
        method="POST",
        path=f"/admin/{operation.name()}",
        access=Access.ADMIN,
        summary=operation.summary(),
        body=body,
        is_body_required="required" in body,
        answer=answers.cluster(),
        errors=(400, 409, 503, 504),
        handler=handlers.operate(operation),
    )
