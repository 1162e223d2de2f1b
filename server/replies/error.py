"""The body of every refused or failed request."""

from __future__ import annotations

from server.replies.reply import Reply


class ErrorDetail(Reply):
    """`message` names the value, the rule and the way out; `param` the first field at fault."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(Reply):
    """Body of every refused or failed request, and the event of a stream that broke."""

    error: ErrorDetail
