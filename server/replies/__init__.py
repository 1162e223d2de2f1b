"""What the server answers, field by field; `server.openapi` says of each route which of these."""

from server.replies.attribution import Attribution
from server.replies.chat import ChatChunk, ChatCompletion
from server.replies.completion import Completion, CompletionChunk
from server.replies.error import ErrorReply
from server.replies.model import Model, Models
from server.replies.operation import Health, Ready, ServerVersion
from server.replies.reply import Reply
from server.replies.response import Response, ResponseEvent
from server.replies.routing import Route, Routing, RoutingRecords
from server.replies.stack import Generation, PublishedRouter, PublishedStack, Registry, Router, Stack, Stacks
from server.replies.tokens import Text, TokenizerInfo, Tokens

__all__ = [
    "Attribution",
    "ChatChunk",
    "ChatCompletion",
    "Completion",
    "CompletionChunk",
    "ErrorReply",
    "Generation",
    "Health",
    "Model",
    "Models",
    "PublishedRouter",
    "PublishedStack",
    "Ready",
    "Registry",
    "Reply",
    "Response",
    "ResponseEvent",
    "Route",
    "Router",
    "Routing",
    "RoutingRecords",
    "ServerVersion",
    "Stack",
    "Stacks",
    "Text",
    "TokenizerInfo",
    "Tokens",
]
