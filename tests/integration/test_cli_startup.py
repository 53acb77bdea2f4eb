from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from demo_fleet import cortex_here, environment

from cortex_cli.root import COMMANDS, COMMANDS_OF_OTHERS, RootGroup, app
from cortex_common import __version__

ROOT = Path(__file__).parents[2]


def cortex(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a new interpreter, as a user would."""
    return subprocess.run(
        [sys.executable, "-m", "cortex_cli", *args],
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_loads_no_heavy_package():
    """`cortex --help` imports no server, no HTTP client, no terminal UI, and little else."""
    probe = (
        "import sys, json\n"
        "from cortex_cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'fastapi', 'uvicorn', 'httpx', 'textual', 'rich', 'pydantic', 'asyncio'}\n"
        "print(json.dumps([len(sys.modules), sorted(heavy & set(sys.modules))]), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60
    )

    modules, heavy = json.loads(done.stderr)
    assert heavy == []
    assert modules < 250
    assert "Daily use" in done.stdout


@pytest.mark.parametrize("name", list(COMMANDS))
def test_summaries_match_help_texts(name: str):
    """The summary in `cortex --help` is the first line of the command's help text."""
    root = typer.main.get_command(app)
    assert isinstance(root, RootGroup)
    command = root.get_command(typer.Context(root), name)

    assert (command.help or "").splitlines()[0].rstrip(".") == COMMANDS[name].summary
    assert len(COMMANDS[name].summary) <= 60


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help(name: str):
    """`-h` works for every command, exits with 0 and writes to stdout."""
    done = cortex_here(name, "-h")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: cortex {name}")


def test_no_arguments_is_a_usage_error():
    """`cortex` without arguments writes the help text to stderr and exits with 2."""
    done = cortex()

    assert (done.returncode, done.stdout) == (2, "")
    assert "Usage: cortex" in done.stderr


def test_a_mistyped_command_suggests_the_nearest():
    """`cortex modles` suggests the most similar command and exits with 2."""
    done = cortex_here("modles")

    assert done.returncode == 2
    assert "did you mean `cortex models`" in done.stderr


@pytest.mark.parametrize(("name", "command"), COMMANDS_OF_OTHERS.items())
def test_a_command_of_a_similar_program_suggests_ours(name: str, command: str):
    """`cortex pull` and similar commands of other programs suggest the command that does the same and exists."""
    done = cortex_here(name, "m")
    assert (done.returncode, f"did you mean `cortex {command}`?" in done.stderr) == (2, True)
    assert cortex_here(*command.split(), "--help").returncode == 0


def test_the_version_option_prints_one_line():
    """`cortex --version` prints the version without contacting a gateway."""
    assert cortex_here("--version").stdout == f"cortex {__version__}\n"


def test_a_subcommand_without_its_group_is_suggested():
    """`cortex drain` suggests the subcommands of that name instead of a similar command."""
    done = cortex_here("drain", "beast")

    assert "did you mean `cortex nodes drain` or `cortex plan drain`?" in done.stderr


@pytest.mark.parametrize(
    "line",
    [
        ("models", "load", "m", "--timeout", "0"),
        ("models", "pin", "m", "--for", "0s"),
        ("models", "pin", "m", "--for", "99999999d"),
        ("defrag", "--max-time", "0"),
    ],
)
def test_an_invalid_duration_is_a_usage_error(line: tuple[str, ...]):
    """The error contains the name of the option, and no request is sent."""
    done = cortex_here(*line)

    assert done.returncode == 2
    assert done.stderr.startswith(f"error: invalid value for {line[-2]}: ")


def test_the_gateway_option_before_the_command():
    """--gateway is accepted before the command; after the command it takes precedence."""
    before = cortex_here("-g", "http://127.0.0.1:9", "ps")
    both = cortex_here("-g", "http://127.0.0.1:9", "ps", "-g", "http://127.0.0.1:7")

    assert before.stderr.startswith("error: the gateway at http://127.0.0.1:9 ")
    assert both.stderr.startswith("error: the gateway at http://127.0.0.1:7 ")


def test_help_shows_topics_and_commands():
    """`cortex help` shows all commands, `cortex help models load` one, and `cortex help exit-codes` a topic."""
    assert cortex_here("help").stdout == cortex_here("--help").stdout
    assert (
        cortex_here("help", "models", "load").stdout == cortex_here("models", "load", "-h").stdout
    )
    assert "130  interrupted" in cortex_here("help", "exit-codes").stdout
    assert cortex_here("help", "nope").returncode == 2


def test_a_group_lists_its_commands_with_full_summaries():
    """Summaries of subcommands are not truncated."""
    shown = " ".join(cortex_here("models", "-h").stdout.split())

    assert "the reason for it, its estimate and measurements" in shown


def test_an_unreachable_gateway_exits_with_5():
    """The error is on stderr, with a hint, and stdout is empty."""
    done = cortex("ps", "--gateway", "http://127.0.0.1:9")

    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.startswith("error: the gateway at http://127.0.0.1:9 can't be reached")
    assert "\nhint: " in done.stderr


def test_an_invalid_ssl_cert_file_is_reported(tmp_path: Path):
    """The error contains the path in SSL_CERT_FILE."""
    path = tmp_path / "ca.pem"
    path.write_text("no certificate")
    for name in (str(path), "/nowhere.pem"):
        done = cortex("ps", "--gateway", "https://127.0.0.1:9", SSL_CERT_FILE=name)
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: certificate authorities can't be read from {name}: ")


def test_version_without_a_gateway():
    """`cortex version --client` needs no gateway."""
    done = cortex_here("version", "--client", "-o", "json")

    assert json.loads(done.stdout)["items"][0]["part"] == "command"


def test_checking_valid_files():
    """`config check` of the example files exits with 0 and prints ok for each."""
    files = sorted(str(p) for p in (ROOT / "config").glob("*.toml"))
    done = cortex_here("config", "check", *files)

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{name}: ok" for name in files]


def test_checking_an_invalid_file(tmp_path: Path):
    """`config check` reports file, line and key, suggests the correct key, and exits with 1."""
    path = tmp_path / "cortex.toml"
    path.write_text('[gateway]\nlisen = "127.0.0.1:1"\n')
    done = cortex_here("config", "check", str(path))

    assert done.returncode == 1
    assert f"error: {path}:2: unknown key gateway.lisen" in done.stderr
    assert "hint: did you mean 'listen'?" in done.stderr


def test_referenced_files_are_checked(tmp_path: Path):
    """`config check` and `serve neuron --check` exit with 1 if the token file is missing."""
    path = tmp_path / "neuron.toml"
    path.write_text('[neuron]\ntoken_file = "/nonexistent/token"\n')
    checked = cortex_here("config", "check", str(path))
    started = cortex_here("serve", "neuron", "--check", "--config", str(path))

    assert (checked.returncode, started.returncode) == (1, 1)
    message = f"error: {path}:2: neuron.token_file: file /nonexistent/token does not exist"
    assert message in checked.stderr
    assert "/nonexistent/token" in started.stderr


def test_the_catalogue_of_a_gateway_is_checked(tmp_path: Path):
    """An error in the catalogue is reported, only once if both files are checked."""
    path, models = tmp_path / "cortex.toml", tmp_path / "models.toml"
    path.write_text("[gateway]\n")
    models.write_text('[[models]]\nid = "m"\nharnes = "llamacpp"\n')
    for files in ([path], [path, models]):
        done = cortex_here("config", "check", *map(str, files))
        assert done.returncode == 1
        assert done.stderr.count(f"error: {models}:3: unknown key models.0.harnes") == 1


def test_warnings_fail_only_when_strict(tmp_path: Path):
    """A gateway without neurons is a warning; --strict makes it an error."""
    path = tmp_path / "cortex.toml"
    path.write_text("[gateway]\n")

    assert cortex_here("config", "check", str(path)).returncode == 0
    assert cortex_here("config", "check", str(path), "--strict").returncode == 1


def test_show_origins(tmp_path: Path):
    """`config show --origin` shows file and line, variable or default of each value."""
    path = tmp_path / "cortex.toml"
    path.write_text("[gateway]\nmax_body_mb = 5\n")
    done = cortex_here(
        *("config", "show", "gateway", "--file", str(path), "--origin", "-o", "json"),
        CORTEX_GATEWAY__LISTEN="127.0.0.1:1",
    )
    origins = {s["key"]: s["origin"] for s in json.loads(done.stdout)["items"]}

    assert origins["gateway.max_body_mb"] == f"{path}:2"
    assert origins["gateway.listen"] == "$CORTEX_GATEWAY__LISTEN"
    assert origins["gateway.models"] == "default"


@pytest.mark.parametrize("service", ["gateway", "neuron"])
def test_serve_can_check_only(service: str):
    """`serve --check` validates the settings and exits without listening."""
    assert cortex_here("serve", service, "--check").stdout == "ok\n"


def test_serve_rejects_invalid_settings(tmp_path: Path):
    """A daemon with an invalid setting exits immediately with the reason, without a traceback."""
    path = tmp_path / "neuron.toml"
    path.write_text("[neuron]\nlisten = 5\n")
    done = cortex_here("serve", "neuron", "--config", str(path))

    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {path}:2: neuron.listen")


def test_chat_without_a_prompt_or_a_terminal():
    """`cortex chat` without a prompt and a terminal is a usage error instead of waiting forever."""
    done = cortex_here("chat", "some-model")

    assert done.returncode == 2
    assert "prompt is empty" in done.stderr


def test_chat_rejects_invalid_files(tmp_path: Path):
    """A file that is not UTF-8 or does not exist is a usage error."""
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    for name, message in (("latin", "is not UTF-8 text"), ("none", "does not exist")):
        done = cortex_here("chat", "some-model", "--file", str(tmp_path / name))
        assert done.returncode == 2
        assert message in done.stderr


def test_usage_errors_are_one_line():
    """Usage errors have one line, without the prefixes of Typer and pydantic."""
    choice = cortex_here("completion", "bogus").stderr.splitlines()
    missing = cortex_here("completion").stderr.splitlines()

    assert choice[0].startswith("error: invalid value for 'shell': 'bogus' is not one of")
    assert missing[0].endswith("Choose from: bash, zsh, fish")


def test_a_closed_pipe_causes_no_traceback():
    """`cortex config schema gateway | head -1` writes nothing to stderr."""
    done = subprocess.run(
        f"{shlex.quote(sys.executable)} -m cortex_cli config schema gateway | head -1",
        shell=True,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert (done.stdout, done.stderr) == ("{\n", "")


def test_contexts(tmp_path: Path):
    """Contexts can be added, selected, listed and removed, and keep their values."""
    env = {"XDG_CONFIG_HOME": str(tmp_path)}
    key = tmp_path / 'a "key"'
    assert cortex_here("context", "ls", **env).stdout == ""
    cortex_here("context", "add", "prod", "http://prod:8000/", "--key-file", str(key), **env)
    cortex_here("context", "add", "the lab", "http://lab:8000", **env)
    document = json.loads(cortex_here("context", "ls", "-o", "json", **env).stdout)
    assert document["kind"] == "ContextList"
    assert [tuple(c.values()) for c in document["items"]] == [
        ("prod", True, "http://prod:8000", str(key)),
        ("the lab", False, "http://lab:8000", None),
    ]
    assert cortex_here("context", "use", "the lab", **env).returncode == 0
    assert cortex_here("ps", **env).stderr.startswith("error: the gateway at http://lab:8000")
    assert cortex_here("context", "use", "prud", **env).returncode == 3
    assert "can't be read" in cortex_here("ps", "-g", "prod", **env).stderr
    cortex_here("context", "rm", "the lab", **env)

    assert cortex_here("context", "ls", "-q", **env).stdout == "prod\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str):
    """There is a completion script for each shell."""
    done = cortex_here("completion", shell)

    assert done.returncode == 0
    assert "_CORTEX_COMPLETE" in done.stdout


@pytest.mark.parametrize(
    ("line", "completions"),
    [("help mod", ["models"]), ("help models lo", ["load", "logs"]), ("help models load x", [])],
)
def test_help_completes_subcommands(line: str, completions: list[str]):
    """After a command, its subcommands are completed."""
    variables = {"COMP_WORDS": f"cortex {line}", "COMP_CWORD": str(len(line.split()))}
    done = cortex_here(_CORTEX_COMPLETE="complete_bash", **variables)

    assert done.stdout.split() == completions


@pytest.mark.parametrize(
    ("topic", "words"),
    [("exit-codes", "130"), ("environment", "CORTEX_API_KEY_FILE"), ("config", "--origin")],
)
def test_help_topics(topic: str, words: str):
    """`cortex help TOPIC` shows the topic."""
    assert words in cortex_here("help", topic).stdout


def test_help_of_a_command_does_not_import_httpx():
    """--help of a subcommand does not import httpx, which takes most of the start-up time."""
    probe = (
        "import sys\n"
        "from cortex_cli.main import main\n"
        "try: main(['models', 'load', '--help'])\n"
        "except SystemExit: pass\n"
        "print('httpx' in sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60
    )

    assert done.stderr == "False\n"


def test_the_embedded_engine_imports_no_unnecessary_library():
    """A cold start waits for every import, and each of these takes as long as everything the engine needs."""
    probe = (
        "import sys, neuron_server.embedded_engine.worker; "
        "print({'pydantic', 'fastapi', 'httpx'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60
    )

    assert done.stdout == "set()\n"
