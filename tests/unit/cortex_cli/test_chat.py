"""Conversations of `cortex chat`: slash commands, Markdown blocks and statistics."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_cli.chat.blocks import complete_blocks
from cortex_cli.chat.conversation import Conversation, SlashCommand, parse_line
from cortex_cli.chat.session import save
from cortex_cli.chat.statistics import statistics_line, token_rate
from cortex_cli.inference import ChatChunk, Message, Usage
from cortex_common.errors import BadRequest


def chunks(*times: float, usage: Usage | None = None) -> list[ChatChunk]:
    """Return chunks of one word each that arrived at these times."""
    headers = {"x-cortex-node": "beast"}
    found = [ChatChunk("word", "", at, None, None, headers) for at in times]
    return [*found, ChatChunk("", "", times[-1], "stop", usage, headers)]


@pytest.mark.parametrize(
    ("line", "parsed"),
    [
        ("hello", "hello"),
        ("//etc is a directory", "/etc is a directory"),
        ("/tmp\nis a directory", "/tmp\nis a directory"),
        ("/model qwen3-32b", SlashCommand("/model", "qwen3-32b")),
        ("/quit", SlashCommand("/exit", "")),
    ],
)
def test_lines_that_begin_with_a_slash_are_commands(line: str, parsed: object):
    """A single line with one slash is a command; two slashes make it a message."""
    assert parse_line(line) == parsed


def test_an_unknown_command_suggests_the_nearest():
    """An unknown command is an error instead of a message to the model."""
    with pytest.raises(BadRequest, match="unknown command '/sytem'") as raised:
        parse_line("/sytem You are terse.")
    assert raised.value.hints == ("did you mean /system?",)


def test_a_conversation_keeps_incomplete_answers_and_drops_failed_questions():
    """A question without an answer is not sent again with the next one."""
    conversation = Conversation("m", system="Be brief.")
    conversation.add("lost", "")
    conversation.add("one", "first")
    assert conversation.request("two") == [
        Message(role="system", content="Be brief."),
        Message(role="user", content="one"),
        Message(role="assistant", content="first"),
        Message(role="user", content="two"),
    ]


def test_a_saved_conversation_replaces_no_file(tmp_path: Path):
    """`/save` writes Markdown to a new file and never overwrites one."""
    conversation = Conversation("m", messages=[Message(role="user", content="hi")])
    file = save(conversation, str(tmp_path / "talk.md"))
    assert file.read_text() == "# m\n\n## user\n\nhi\n"
    with pytest.raises(BadRequest, match="File exists"):
        save(conversation, str(file))


@pytest.mark.parametrize(
    ("text", "complete"),
    [
        ("one line", ""),
        ("a paragraph\n\nthe next", "a paragraph\n\n"),
        ("```py\nx = 1\n\ny = 2\n", ""),
        ("```py\nx = 1\n\n```\nafter", "```py\nx = 1\n\n```\n"),
        ("~~~~\n~~~\n\n~~~~\n", "~~~~\n~~~\n\n~~~~\n"),
    ],
)
def test_blocks_end_at_blank_lines_outside_of_code(text: str, complete: str):
    """A block is complete at a blank line, or at the end of a fenced code block."""
    assert text[: complete_blocks(text)] == complete


@given(st.lists(st.sampled_from(["text", "\n", "```", "```\n", "~~~\n", " "])))
def test_later_text_does_not_change_complete_blocks(parts: list[str]):
    """The complete part of a text only grows while the text does."""
    text, end = "", 0
    for part in parts:
        text += part
        assert complete_blocks(text) >= end
        end = complete_blocks(text)


def test_the_rate_counts_tokens_after_the_first_arrival():
    """Tokens that arrived together with the first do not count: 4 of 5 tokens in 2 s are 2/s."""
    found = chunks(1.0, 1.5, 2.0, 2.5, 3.0)[:-1]
    assert token_rate(found, 5) == pytest.approx(2.0)
    assert token_rate(found, 50) == pytest.approx(20.0), "an engine can send several tokens a chunk"


def test_a_response_that_arrives_at_once_has_no_rate():
    """Chunks that arrive in one read say nothing about the speed of the engine."""
    assert token_rate(chunks(*[1.0] * 30, 1.0001)[:-1], 31) is None


def test_statistics_contain_node_tokens_and_times():
    """The line has model, node, tokens, time to the first token and the rate."""
    usage = Usage(prompt_tokens=3, completion_tokens=5)
    line = statistics_line("m", chunks(0.5, 1.0, 1.5, 2.0, 2.5, usage=usage))
    assert line == "m, on beast, 5 tokens, first after 0.5s, 2.0/s"
