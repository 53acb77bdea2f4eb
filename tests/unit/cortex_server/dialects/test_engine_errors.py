"""Errors of engines: what they say about length, and how they are brought into shape."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_common.errors import (
    BadRequest,
    BodyTooLarge,
    Busy,
    CortexError,
    MaxTokensTooLarge,
    NotFound,
    PromptTooLong,
    Unavailable,
    UpstreamFailed,
)
from cortex_server.dialects.anthropic.errors import error_response
from cortex_server.dialects.engine_errors import error_from_event, error_from_response
from cortex_server.dialects.openai_errors import engine_error_response

# (server, message, tokens of the prompt, limit)
_PROMPTS: list[tuple[str, str, int | None, int | None]] = [
    (
        "LM Studio",
        (
            "Trying to keep the first 6000 tokens when context the overflows. However, the model is "
            "loaded with context "
            "length of only 4096 tokens, which is not enough. Try to load the model with a larger context length, or "
            "provide a shorter input"
        ),
        6000,
        4096,
    ),
    (
        "LM Studio",
        (
            "The number of tokens to keep from the initial prompt is greater than the context length "
            "(n_keep: 6000>= n_ctx: 4096)."
        ),
        6000,
        4096,
    ),
    ("LM Studio", "Context size has been exceeded.", None, None),
    (
        "xAI",
        "This model's maximum prompt length is 131072 but the request contains 537812 tokens.",
        537812,
        131072,
    ),
    ("Groq", "Please reduce the length of the messages or completion.", None, None),
    (
        "Cerebras",
        "Please reduce the length of the messages or completion. Current length is 9000 while limit is 8192",
        9000,
        8192,
    ),
    ("MiniMax", "invalid params, context window exceeds limit (2013)", None, None),
    ("Zhipu", "Prompt exceeds max length", None, None),
    ("Zhipu", "Prompt 超长", None, None),
    (
        "DashScope",
        "<400> InternalError.Algo.InvalidParameter: Range of input length should be [1, 30720]",
        None,
        30720,
    ),
    (
        "TensorRT-LLM",
        "The sum of prompt length (9351.0), query length (0) should not exceed max_num_tokens (8192)",
        9351,
        8192,
    ),
    ("TensorRT-LLM", "Prompt length (5056) exceeds maximum sequence length (2048)", 5056, 2048),
    (
        "TensorRT-LLM",
        (
            "default_max_tokens (-904) should be greater than 0, default_max_tokens (-904) = max_seq_len (4096) - "
            "splited_prompt_len (5000) - query_token_len (0)"
        ),
        5000,
        4096,
    ),
    (
        "TGI",
        "Input validation error: `inputs` must have less than 1024 tokens. Given: 5000",
        5000,
        1024,
    ),
    (
        "TGI",
        (
            "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4097. Given: 5000 "
            "`inputs` tokens and "
            "512 `max_new_tokens`"
        ),
        5000,
        4097,
    ),
    ("TabbyAPI", "Prompt length 5000 is greater than max_seq_len 4096", 5000, 4096),
    (
        "Gemini",
        "The input token count (1196265) exceeds the maximum number of tokens allowed (1048575).",
        1196265,
        1048575,
    ),
    (
        "Gemini",
        "The input token count exceeds the maximum number of tokens allowed 1048576.",
        None,
        None,
    ),
    (
        "DeepInfra",
        "This model's maximum context length is 32768 tokens. However, your messages resulted in 40000 tokens.",
        40000,
        32768,
    ),
    (
        "Moonshot",
        "Invalid request: Your request exceeded model token limit: 262144 (requested: 269030)",
        269030,
        262144,
    ),
    (
        "OpenRouter",
        (
            "This endpoint's maximum context length is 1048576 tokens. However, you requested about 1293741 tokens "
            "(1227853 of text input, 353 of tool input, 65535 in the output). Please reduce the length of either one"
        ),
        1227853,
        1048576,
    ),
    (
        "SGLang",
        "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
        5000,
        4096,
    ),
    (
        "SGLang",
        "Input length (5000 tokens) exceeds the maximum allowed length (4096 tokens). Use a shorter input.",
        5000,
        4096,
    ),
    (
        "vLLM",
        (
            "This model's maximum context length is 4096 tokens. However, you requested 5100 tokens "
            "(5000 in the messages, "
            "100 in the completion). Please reduce the length of the messages or completion."
        ),
        5000,
        4096,
    ),
    (
        "vLLM",
        (
            "This model's maximum context length is 4096 tokens. However, your request has 5000 input tokens. Please "
            "reduce the length of the input messages."
        ),
        5000,
        4096,
    ),
    (
        "vLLM",
        (
            "The decoder prompt (length 5000) is longer than the maximum model length of 4096. Make sure that "
            "`max_model_len` is no smaller than the number of text tokens."
        ),
        5000,
        4096,
    ),
    (
        "vLLM",
        (
            "You passed 4097 input tokens and requested 1 output tokens. However, the model's context "
            "length is only 4096 "
            "tokens, resulting in a maximum input length of 4095 tokens."
        ),
        4097,
        4096,
    ),
    (
        "llama.cpp",
        "request (9000 tokens) exceeds the available context size (8192 tokens), try increasing it",
        9000,
        8192,
    ),
    (
        "llama.cpp",
        "input (600 tokens) is too large to process. increase the physical batch size (current batch size: 512)",
        600,
        512,
    ),
    ("llama-cpp-python", "Requested tokens (11280) exceed context window of 2048", 11280, 2048),
    (
        "mistral.rs",
        "Prompt sequence length is greater than 4096, perhaps consider using `truncate`?",
        None,
        4096,
    ),
    ("embedded", "the prompt is longer than the context of 2048 tokens", None, 2048),
    ("Ollama", "the input length exceeds the context length", None, None),
    ("Ollama", "prompt too long; exceeded max context length by 1200 tokens", None, None),
    (
        "Mistral",
        "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length",
        40000,
        32768,
    ),
    ("Mistral", "Prompt 262280 > 262144 maximum context length", 262280, 262144),
    (
        "Fireworks",
        "The prompt is too long: 1000008, model maximum context length: 131071",
        1000008,
        131071,
    ),
    ("Bedrock", "Input is too long for requested model.", None, None),
    (
        "Bedrock",
        "Input Tokens Exceeded: Number of input tokens exceeds maximum length.",
        None,
        None,
    ),
    ("Anthropic", "prompt is too long: 213462 tokens > 200000 maximum", 213462, 200000),
    (
        "OpenAI",
        "Your input exceeds the context window of this model. Please adjust your input.",
        None,
        None,
    ),
    ("Perplexity", "The total length of all messages is too long.", None, None),
    (
        "Cohere",
        "too many tokens: total number of tokens in the prompt cannot exceed 4081 - received 5000.",
        5000,
        4081,
    ),
    (
        "GitHub Copilot",
        "prompt token count of 130,000 exceeds the limit of 128,000",
        130000,
        128000,
    ),
]

# (server, message, max_tokens, limit, tokens of the prompt)
_COMPLETIONS: list[tuple[str, str, int | None, int | None, int | None]] = [
    (
        "vLLM",
        (
            "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens "
            "(1000 in the messages, "
            "4000 in the completion). Please reduce the length of the messages or completion."
        ),
        4000,
        4096,
        1000,
    ),
    (
        "vLLM",
        (
            "'max_tokens' or 'max_completion_tokens' is too large: 2000. This model's maximum context length is 4096 "
            "tokens and your request has 2104 input tokens (2000 > 4096 - 2104)."
        ),
        2000,
        4096,
        2104,
    ),
    (
        "SGLang",
        (
            "Requested token count exceeds the model's maximum context length of 4096 tokens. You requested a total of "
            "5000 tokens: 1000 tokens from the input messages and 4000 tokens for the completion. Please "
            "reduce the number of "
            "tokens in the input messages or the completion to fit within the limit."
        ),
        4000,
        4096,
        1000,
    ),
    (
        "OpenAI",
        (
            "This model's maximum context length is 4097 tokens, however you requested 4322 tokens (4066 "
            "in your prompt; "
            "256 for the completion). Please reduce your prompt; or completion length."
        ),
        256,
        4097,
        4066,
    ),
    (
        "OpenAI",
        "max_tokens is too large: 5000. This model supports at most 4096 completion tokens, whereas you provided 5000.",
        5000,
        4096,
        None,
    ),
    (
        "DeepSeek",
        "Invalid max_tokens value, the valid range of max_tokens is [1, 8192]",
        None,
        8192,
        None,
    ),
    (
        "DashScope",
        "<400> InternalError.Algo.InvalidParameter: Range of max_tokens should be [1, 8192]",
        None,
        8192,
        None,
    ),
    (
        "Groq",
        (
            "`max_tokens` must be less than or equal to `8192`, the maximum value for `max_tokens` is less than the "
            "`context_window` for this model"
        ),
        None,
        8192,
        None,
    ),
    (
        "Anthropic",
        (
            "input length and `max_tokens` exceed context limit: 188240 + 21333 > 200000, decrease input length or "
            "`max_tokens` and try again"
        ),
        21333,
        200000,
        188240,
    ),
    (
        "Anthropic",
        "max_tokens: 100000 > 64000, which is the maximum allowed number of output tokens for claude",
        100000,
        64000,
        None,
    ),
    (
        "Bedrock",
        "The maximum tokens you requested exceeds the model limit of 4096.",
        None,
        4096,
        None,
    ),
    (
        "Gemini",
        (
            "Unable to submit request because it has a maxOutputTokens value of 100000 but the supported "
            "range is from 1 "
            "(inclusive) to 65537 (exclusive). Update the value and try again."
        ),
        100000,
        65537,
        None,
    ),
    (
        "TGI",
        (
            "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 2048. Given: 1500 "
            "`inputs` tokens and "
            "1000 `max_new_tokens`"
        ),
        1000,
        2048,
        1500,
    ),
]


def _body(message: str, **fields: Any) -> bytes:
    return json.dumps({"error": {"message": message} | fields}).encode()


@pytest.mark.parametrize(("server", "message", "prompt", "limit"), _PROMPTS)
@pytest.mark.parametrize("status", [400, 413, 422, 500])
def test_prompts_that_are_too_long_are_recognized(
    server: str, message: str, prompt: int | None, limit: int | None, status: int
) -> None:
    """The words of each server, not the sizes, distinguish prompt and limit."""
    error = error_from_response(status, _body(message))
    assert isinstance(error, PromptTooLong), server
    assert error.details.get("n_prompt_tokens") == prompt
    assert error.details.get("n_ctx") == limit
    found_status, body = engine_error_response(status, _body(message))
    assert found_status == (413 if status == 413 else 400)
    assert json.loads(body)["error"]["code"] == "context_length_exceeded"
    found_status, body = error_response(error, prompt_tokens=7)
    assert found_status == (413 if status == 413 else 400)
    answer = json.loads(body)["error"]["message"]
    expected = f"prompt is too long: {prompt or (limit or 0) + 1} tokens > {limit} maximum"
    assert answer == (expected if limit else f"prompt is too long: {message}")


@pytest.mark.parametrize(("server", "message", "asked", "limit", "prompt"), _COMPLETIONS)
def test_max_tokens_that_is_too_large_is_told_apart(
    server: str, message: str, asked: int | None, limit: int | None, prompt: int | None
) -> None:
    """A shorter conversation would not help, so no client gets "prompt is too long"."""
    error = error_from_response(400, _body(message, code="context_length_exceeded"))
    assert isinstance(error, MaxTokensTooLarge), server
    assert error.details.get("max_tokens") == asked
    assert error.details.get("n_ctx", error.details.get("limit")) == limit
    assert error.details.get("n_prompt_tokens") == prompt
    found = json.loads(engine_error_response(400, _body(message))[1])["error"]
    assert (found["code"], found["param"], found["message"]) == (
        "max_tokens_too_large",
        "max_tokens",
        message,
    )
    status, body = error_response(error)
    answer = json.loads(body)["error"]["message"]
    assert status == 400
    assert "prompt is too long" not in answer
    if prompt is not None:
        assert (
            f"`max_tokens` exceed context limit: {prompt} + {asked} > {limit}, decrease" in answer
        )
    elif asked is not None:
        assert answer.startswith(f"max_tokens: {asked} > {limit}, which is the maximum")


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "Rate limit reached: too many tokens per minute, token limit exceeded"),
        (429, "prompt is too long"),
        (503, "maximum context length"),
        (400, "Invalid model name"),
        (400, "max_tokens: Field required"),
    ],
)
def test_other_errors_are_not_about_length(status: int, message: str) -> None:
    """Neither rate limits nor overload are answered by a shorter prompt."""
    error = error_from_response(status, _body(message))
    assert not isinstance(error, PromptTooLong | MaxTokensTooLarge)


@pytest.mark.parametrize(
    "body",
    [
        (
            b'[{"error":{"code":400,"message":"The input token count (9000) exceeds the maximum number '
            b"of tokens allowed "
            b'(8192).","status":"INVALID_ARGUMENT"}}]'
        ),
        (
            b'{"error":{"message":"Provider returned error","code":400,"metadata":{"raw":"{\\"error\\":{\\"message\\":'
            b'\\"prompt is too long: 9000 tokens > 8192 maximum\\"}}","provider_name":"Anthropic"}}}'
        ),
        (
            b'{"code":"invalid-argument","error":"This model\'s maximum prompt length is 8192 but the request contains '
            b'9000 tokens."}'
        ),
        (
            b'{"message":"Please reduce the length of the messages or completion. Current length is 9000 '
            b"while limit is "
            b'8192","type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}'
        ),
        (
            b'{"error":{"code":400,"message":"too long","type":"exceed_context_size_error","n_prompt_tokens":"9000",'
            b'"n_ctx":8192.0}}'
        ),
    ],
    ids=["Gemini", "OpenRouter", "xAI", "Cerebras", "llama.cpp"],
)
def test_the_message_is_found_in_every_shape(body: bytes) -> None:
    """In a list, in the error of another server, beside the code, and as fields."""
    for error in (error_from_response(400, body), error_from_event(body)):
        assert isinstance(error, PromptTooLong)
        assert (error.details["n_prompt_tokens"], error.details["n_ctx"]) == (9000, 8192)


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (b'{"error":{"message":"x","code":"429"}}', Busy),
        (b'{"error":{"message":"x","code":"rate_limit_exceeded"}}', Busy),
        (b'{"error":{"message":"x","status":"RESOURCE_EXHAUSTED"}}', Busy),
        (b'{"error":{"message":"x","type":"overloaded_error"}}', Unavailable),
        (b'{"error":{"message":"x","type":"NotFoundError","code":404}}', NotFound),
        (b'{"error":{"message":"x","type":"BadRequestError"}}', BadRequest),
        (b'{"error":{"message":"x","code":"1261"}}', UpstreamFailed),
        (b'{"error":"x","error_type":"validation"}', BadRequest),
        (b'{"base_resp":{"status_code":1000,"status_msg":"x"}}', UpstreamFailed),
        (b'{"error":{"message":"x","type":7,"code":{"a":1}}}', UpstreamFailed),
    ],
)
def test_errors_in_a_stream_are_classified_by_their_words(
    event: bytes, kind: type[CortexError]
) -> None:
    """There is no status, so code, type and status words decide."""
    error = error_from_event(event)
    assert type(error) is kind or (kind is UpstreamFailed and isinstance(error, PromptTooLong))
    assert error.message == "x"


def test_413_is_413_in_every_dialect() -> None:
    """A body that is too large for the engine's server."""
    body = b'{"error":{"message":"Request Entity Too Large"}}'
    error = error_from_response(413, body)
    assert isinstance(error, BodyTooLarge)
    assert engine_error_response(413, body)[0] == 413
    status, answer = error_response(error)
    assert (status, json.loads(answer)["error"]["type"]) == (413, "request_too_large")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            b'{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}',
            {
                "message": "Loading model",
                "type": "unavailable_error",
                "param": None,
                "code": "unavailable",
            },
        ),
        (
            b'{"error":{"message":"x","type":null,"param":"tools","code":42,"more":[1]}}',
            {
                "message": "x",
                "type": "server_error",
                "param": "tools",
                "code": "unavailable",
                "more": [1],
            },
        ),
        (
            b'{"error":{"message":{"a":1},"type":"t","param":null,"code":"c"}}',
            {"message": '{"a":1}', "type": "t", "param": None, "code": "c"},
        ),
    ],
)
def test_errors_nearly_in_shape_are_completed(body: bytes, expected: dict[str, Any]) -> None:
    """Clients in typed languages fail to parse an integer as the code; the engine's other fields are kept."""
    found = json.loads(engine_error_response(503, body)[1])["error"]
    assert found == expected | {"upstream_status": 503}


def test_an_error_in_shape_is_unchanged() -> None:
    """To the byte, additional fields included."""
    body = b'{"error": {"code": null, "message": "x", "type": "t", "param": "p", "n_ctx": 7}}'
    assert engine_error_response(400, body) == (400, body)


@given(st.text(max_size=200))
def test_any_message_is_read(message: str) -> None:
    """Whatever it says, there is an error with that message."""
    assert error_from_response(400, _body(message)).message


@pytest.mark.parametrize(
    "part",
    [
        "maximum context length is 1 tokens. ",
        "prompt contains 1 tokens ",
        "(",
        "9",
        "input length ",
        "tokens ",
    ],
)
def test_long_messages_are_read(part: str) -> None:
    """The table of patterns does not hang on a message that nearly fits many times."""
    assert error_from_response(400, _body(part * 100_000)).message
