"""What a client may send: names, types and ranges. docs/compatibility.md is the list for people."""

from server.schemas.body import Body
from server.schemas.chat import ChatRequest
from server.schemas.completions import CompletionRequest
from server.schemas.messages import ChatTemplated, Message, Messages
from server.schemas.prompts import (
    ActivateRequest,
    AttributionRequest,
    DetokenizeRequest,
    Prompted,
    RouteRequest,
    TokenizeRequest,
)
from server.schemas.responses import ResponsesRequest
from server.schemas.sampling import MAX_SEED, MAX_SEQUENCES, RoutingField, Sampling

__all__ = [
    "MAX_SEED",
    "MAX_SEQUENCES",
    "ActivateRequest",
    "AttributionRequest",
    "Body",
    "ChatRequest",
    "ChatTemplated",
    "CompletionRequest",
    "DetokenizeRequest",
    "Message",
    "Messages",
    "Prompted",
    "ResponsesRequest",
    "RouteRequest",
    "RoutingField",
    "Sampling",
    "TokenizeRequest",
]
