"""The reference pages of the command and of the keys, written from the code that they describe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer
import typer.main

from cortex_cli.error_exit import EXIT_CODES
from cortex_cli.main import COMMANDS, app

_NOTE = "<!-- Written by `make reference`; a test holds it to the code. -->"

_DOCUMENTS = {
    "Status": "`gateway`, `problems`, `fleet`: [FleetSnapshot](gateway-api.md#fleetsnapshot)",
    "Model": "`model`: [ModelView](gateway-api.md#modelview), `detail`: [ModelDetail](gateway-api.md#modeldetail), "
    "`instances`: [InstanceView](gateway-api.md#instanceview)",
    "Why": "`request`: [RequestView](gateway-api.md#requestview), "
    "`decisions`: [DecisionView](gateway-api.md#decisionview)",
    "ResultList": "of verbs, for each name: `name`, `action`, `outcome` (done, planned or failed), `result` as "
    "the gateway's API answers that verb or its plan, and `error` (`code`, `message`, `hints`, `details`)",
    "BenchRun": "what `--save` writes and `--compare` reads",
    "ModelList": "[ModelView](gateway-api.md#modelview)",
    "InstanceList": "[InstanceView](gateway-api.md#instanceview)",
    "NodeList": "[NodeView](gateway-api.md#nodeview)",
    "DeviceList": "[DeviceView](gateway-api.md#deviceview), its `node`, and the `models` on it",
    "RequestList": "[RequestView](gateway-api.md#requestview)",
    "EventList": "[AuditEntry](gateway-api.md#auditentry)",
    "KeyList": "[KeyView](gateway-api.md#keyview)",
    "UsageList": "[UsageRow](gateway-api.md#usagerow)",
    "SettingList": "[Setting](gateway-api.md#setting)",
    "PlanList": "[PlanView](gateway-api.md#planview)",
    "EvictionPlanList": "[PlannedEviction](gateway-api.md#plannedeviction)",
    "DrainPlanList": "[DrainPlan](gateway-api.md#drainplan)",
    "DefragList": "[DefragView](gateway-api.md#defragview)",
}

_FORMATS = """## Output for programs

`-o json` and `-o yaml` write one document: `apiVersion`, `kind`, and for a list `items`. `-o jsonl` writes each item on
a line of its own, as `--watch` does with both; `-o name` writes names alone. The fields are those of the gateway's
API with one difference: its times are Unix seconds, the command's are strings of RFC 3339 in UTC, such as
`2026-11-26T21:09:15Z` (format `date-time`), with milliseconds where order within a second matters (events, requests,
logs), and `null` for what has not happened. Durations are seconds, but for those in `_ms`; memory is MiB, in fields
that end in `_mb`."""

_REMAP = """Other keys go into `~/.config/cortex/config.toml`, by these names:

```toml
[keys]
logs = "ctrl+l"
defrag = "f9"
```

In the log of an engine: `s` follows or stands still, `w` wraps, `/` filters, `m` draws a line, `0` and `1` go to the
end and the beginning, `c` copies, `esc` closes."""


def commands_page() -> str:
    """docs/reference/cli.md: every command's help as it is printed 80 columns wide."""
    root = typer.main.get_command(app)
    context = _context(root, "cortex", None)
    parts = ["# The command `cortex`", _NOTE, _block(root, context)]
    for name in COMMANDS:
        parts += _pages(root.get_command(context, name), name, context)  # type: ignore[attr-defined]  # it is a group
    codes = "\n".join(f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items())
    kinds = "\n".join(f"| `{kind}` | {told} |" for kind, told in _DOCUMENTS.items())
    parts += [_FORMATS, f"| kind | what is in it |\n|---|---|\n{kinds}"]
    parts += ["## Exit codes", f"| code | meaning |\n|---:|---|\n{codes}"]
    return "\n\n".join(parts) + "\n"


def _pages(command: Any, name: str, parent: Any) -> Iterator[str]:
    context = _context(command, name, parent)
    depth = "#" * (2 if parent.parent is None else 3)
    yield f"{depth} {context.command_path}"
    yield _block(command, context)
    for inner, member in getattr(command, "commands", {}).items():
        yield from _pages(member, inner, context)


def _context(command: Any, name: str, parent: Any) -> Any:
    return typer.Context(
        command,
        info_name=name,
        parent=parent,
        terminal_width=80,
        help_option_names=["-h", "--help"],
    )


def _block(command: Any, context: Any) -> str:
    return f"```text\n{command.get_help(context).rstrip()}\n```"


def keys_page() -> str:
    """docs/reference/keys.md: the keys of `cortex top`."""
    from cortex_cli.tui.keys import key_rows

    rows = "\n".join(f"| `{keys}` | {told} | `{name}` |" for keys, told, name in key_rows())
    return f"# Keys of `cortex top`\n\n{_NOTE}\n\n| key | does | name |\n|---|---|---|\n{rows}\n\n{_REMAP}\n"
