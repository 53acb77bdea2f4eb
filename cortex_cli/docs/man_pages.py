"""Manual pages of the command and the configuration files: `python -m cortex_cli.docs.man_pages DIRECTORY`.

They use the man(7) macros: https://man7.org/linux/man-pages/man7/groff_man.7.html.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer
import typer.main

from cortex_cli.commands.help import ENVIRONMENT
from cortex_cli.config_files import NAMES, SYSTEM_DIR, ConfigFile
from cortex_cli.error_exit import EXIT_CODES
from cortex_cli.render.template import template
from cortex_cli.root import COMMANDS, app
from cortex_common import __version__

_FILES = {
    ConfigFile.GATEWAY: "settings of a cortex gateway",
    ConfigFile.MODELS: "models of a cortex gateway",
    ConfigFile.NEURON: "settings of a GPU host in a cortex fleet",
}


def pages() -> Iterator[tuple[str, str]]:
    """Yield file names such as cortex-models.1 with their contents."""
    root = typer.main.get_command(app)
    context = _context(root, "cortex", None)
    members = {name: root.get_command(context, name) for name in COMMANDS}  # type: ignore[attr-defined]  # it is a group
    yield "cortex.1", _root_page(root, context)
    for name, command in members.items():
        yield f"cortex-{name}.1", _command_page(command, _context(command, name, context))
    serve = _context(members["serve"], "serve", context)
    neuron = members["serve"].commands["neuron"]
    yield "neuron.8", _neuron_page(neuron, _context(neuron, "neuron", serve))
    for file, summary in _FILES.items():
        yield f"{NAMES[file]}.5", _file_page(file, summary)


def roff(text: str) -> str:
    """Escape text for roff; words in backticks become bold."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    escaped = re.sub(r"`([^`]*)`", r"\\fB\1\\fR", escaped)
    return re.sub(r"^\.", r"\\&.", escaped, flags=re.MULTILINE)


def _head(name: str, section: int, summary: str) -> str:
    title = f'.TH "{roff(name.upper())}" {section} "" "cortex {__version__}" "cortex"'
    return f"{title}\n.SH NAME\n{roff(name)} \\- {roff(summary)}"


def _root_page(root: Any, context: Any) -> str:
    parts = [
        _head("cortex", 1, "run and operate a fleet of GPU hosts as one inference service"),
        f".SH SYNOPSIS\n{_synopsis(root, context)}",
        f".SH DESCRIPTION\n{roff(root.help)}",
        *_options(root, context, ".SH OPTIONS"),
        ".SH COMMANDS",
        _listed({f"`cortex-{name}(1)`": entry.summary for name, entry in COMMANDS.items()}),
        ".SH EXIT STATUS",
        _listed({str(code): meaning for code, meaning in EXIT_CODES.items()}),
        ".SH ENVIRONMENT",
        _listed(ENVIRONMENT),
        ".SH FILES",
        _listed({f"{SYSTEM_DIR / NAMES[file]}": summary for file, summary in _FILES.items()}),
        ".SH SEE ALSO",
        ", ".join(f"\\fB{roff(NAMES[file])}\\fR(5)" for file in ConfigFile) + ", \\fBneuron\\fR(8)",
    ]
    return "\n".join(parts) + "\n"


def _command_page(command: Any, context: Any) -> str:
    name = context.command_path.replace(" ", "-")
    inner = getattr(command, "commands", {})
    parts = [
        _head(name, 1, _summary(command)),
        f".SH SYNOPSIS\n{_synopsis(command, context)}",
        f".SH DESCRIPTION\n{roff(command.help or '')}",
        *_options(command, context, ".SH OPTIONS"),
        *([".SH COMMANDS"] if inner else []),
    ]
    for word, member in inner.items():
        parts += _subcommand(member, _context(member, word, context))
    parts += [*_examples(command), ".SH SEE ALSO\n\\fBcortex\\fR(1)"]
    return "\n".join(parts) + "\n"


def _subcommand(command: Any, context: Any) -> Iterator[str]:
    yield f".SS {_synopsis(command, context)}"
    yield roff(command.help or "")
    yield from _options(command, context, ".PP")
    if command.epilog:
        yield f".PP\n{roff(command.epilog)}"


def _neuron_page(command: Any, context: Any) -> str:
    parts = [
        _head("neuron", 8, "the daemon of a GPU host in a cortex fleet"),
        ".SH SYNOPSIS\n\\fB/usr/libexec/cortex/neuron\\fR [OPTIONS]",
        f".SH DESCRIPTION\n{roff(command.help)}",
        ".PP",
        roff(
            "It discovers the devices of its host and runs engines on them at the request of gateways. "
            "`systemctl start neuron` starts it with the settings in /etc/cortex/neuron.toml; "
            "after a restart, it adopts the engines that are still running."
        ),
        *_options(command, context, ".SH OPTIONS"),
        ".SH FILES",
        _listed({"/etc/cortex/neuron.toml": _FILES[ConfigFile.NEURON]}),
        ".SH SEE ALSO\n\\fBneuron.toml\\fR(5), \\fBcortex\\fR(1)",
    ]
    return "\n".join(parts) + "\n"


def _file_page(file: ConfigFile, summary: str) -> str:
    text = roff(template(file).split("\n", 1)[1].strip()).replace("`", "\\`")
    parts = [
        _head(NAMES[file], 5, summary),
        ".SH DESCRIPTION",
        roff(
            f"A TOML file in {SYSTEM_DIR}. Below is every setting with its default; "
            "`cortex config check` validates a file."
        ),
        ".SH SETTINGS",
        f".nf\n{text}\n.fi",
        ".SH SEE ALSO\n\\fBcortex\\fR(1), \\fBcortex\\-config\\fR(1)",
    ]
    return "\n".join(parts) + "\n"


def _context(command: Any, name: str, parent: Any) -> Any:
    return typer.Context(command, info_name=name, parent=parent, help_option_names=["-h", "--help"])


def _summary(command: Any) -> str:
    first = (command.help or "").strip().splitlines()[0].rstrip(".")
    return first[:1].lower() + first[1:]


def _synopsis(command: Any, context: Any) -> str:
    pieces = " ".join(command.collect_usage_pieces(context))
    return f"\\fB{roff(context.command_path)}\\fR {roff(pieces)}"


def _options(command: Any, context: Any, heading: str) -> Iterator[str]:
    # --help is documented once, in cortex(1).
    params = [p for p in command.get_params(context) if p.name != "help" or context.parent is None]
    records = [param.get_help_record(context) for param in params]
    entries = dict(filter(None, records))
    if entries:
        yield heading
        yield _listed(entries)


def _examples(command: Any) -> Iterator[str]:
    if command.epilog:
        yield f".SH EXAMPLES\n{roff(command.epilog)}"


def _listed(entries: Mapping[str, str]) -> str:
    return "\n".join(f".TP\n{roff(term)}\n{roff(meaning)}" for term, meaning in entries.items())


def main() -> None:
    """Write all pages into a directory."""
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for name, page in pages():
        (directory / name).write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
