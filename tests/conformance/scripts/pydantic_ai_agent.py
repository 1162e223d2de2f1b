"""`pydantic-ai`: agents, and single requests where a call is required."""

from __future__ import annotations

from typing import Any

from pydantic_ai import Agent, ModelHTTPError, NativeOutput, ToolDefinition
from pydantic_ai.direct import model_request_sync
from pydantic_ai.messages import ModelRequest, ToolReturnPart
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.conformance.scripts.person import Person
from tests.conformance.scripts.questions import (
    CALL_TOKENS,
    FOLLOW_UP,
    KEY,
    MODEL,
    MULTIPLY,
    PRODUCT,
    QUESTION,
    RECORD,
    ROUTING,
    TOKENS,
    UNKNOWN,
    URL,
)
from tests.conformance.scripts.report import expect, report


def model(name: str = MODEL) -> Any:
    return OpenAIChatModel(name, provider=OpenAIProvider(base_url=URL, api_key=KEY))


SETTINGS: Any = {"temperature": 0, "max_tokens": TOKENS}
ROOMY: Any = {**SETTINGS, "max_tokens": CALL_TOKENS}
agent = Agent(model(), model_settings=SETTINGS)


def plain() -> None:
    answer = agent.run_sync(QUESTION)
    expect(answer.output, "the answer is empty")
    expect(answer.usage.output_tokens <= TOKENS, f"usage: {answer.usage}")


def streaming() -> None:
    parts = list(agent.run_stream_sync(QUESTION).stream_text(delta=True, debounce_by=None))
    expect(len(parts) > 1, "it came in one piece")
    expect("".join(parts) == agent.run_sync(QUESTION).output, "streamed, it is another answer")


def multi_turn() -> None:
    first = agent.run_sync(QUESTION)
    expect(agent.run_sync(FOLLOW_UP, message_history=first.all_messages()).output, "the answer is empty")


def structured() -> None:
    for kind in (NativeOutput(Person), Person):  # by a schema, and by a call
        answer = Agent(model(), output_type=kind, model_settings=ROOMY).run_sync(RECORD)
        expect(isinstance(answer.output, Person), f"no object: {answer.output}")


def tools() -> None:
    told = MULTIPLY["function"]
    function = ToolDefinition(
        name=told["name"], description=told["description"], parameters_json_schema=told["parameters"]
    )
    may = ModelRequestParameters(function_tools=[function])
    must = ModelRequestParameters(function_tools=[function], allow_text_output=False)
    question = ModelRequest.user_text_prompt(PRODUCT)
    model_request_sync(model(), [question], model_settings=ROOMY, model_request_parameters=may)
    first = model_request_sync(model(), [question], model_settings=ROOMY, model_request_parameters=must)
    expect(first.tool_calls, f"no call: {first}")
    call = first.tool_calls[0]
    expect(call.args_as_dict().keys() == {"a", "b"}, f"the call: {call}")
    result = ModelRequest([ToolReturnPart(call.tool_name, 51, call.tool_call_id)])
    last = model_request_sync(
        model(), [question, first, result], model_settings=ROOMY, model_request_parameters=may
    )
    expect(last.parts, "the answer after the result is empty")


def logprobs() -> None:
    answer = agent.run_sync(
        QUESTION, model_settings={**SETTINGS, "openai_logprobs": True, "openai_top_logprobs": 2}
    )
    details = answer.response.provider_details or {}
    expect(details.get("logprobs"), f"details: {details}")


def errors() -> None:
    try:
        Agent(model(UNKNOWN)).run_sync(QUESTION)
    except ModelHTTPError as error:
        expect(error.status_code == 404, f"another error: {error}")
        return
    raise AssertionError("an unknown model answered")


def routing() -> None:
    outputs = {
        Agent(model(f"{MODEL}:{name}"), model_settings=SETTINGS).run_sync(QUESTION).output
        for name in ("base", "ungated")
    }
    expect(len(outputs) == 2, f"the same answer with and without stacks: {outputs}")
    agent.run_sync(QUESTION, model_settings={**SETTINGS, "extra_body": ROUTING})


report(
    plain=plain,
    streaming=streaming,
    multi_turn=multi_turn,
    structured=structured,
    tools=tools,
    logprobs=logprobs,
    errors=errors,
    routing=routing,
)
