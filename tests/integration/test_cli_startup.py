from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from demo_fleet import cortex_here, environment

from cortex_cli.main import COMMANDS, Root, app

ROOT = Path(__file__).parents[2]


def cortex(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command from a new interpreter, as a user would."""
    return subprocess.run(
        [sys.executable, "-m", "cortex_cli", *args],
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_loads_no_heavy_package():
    """`cortex --help` imports neither a server, nor an HTTP client, nor the terminal UI, and little else."""
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
def test_the_listing_says_what_each_command_says(name: str):
    """The summary in `cortex --help` is the first line of the command's own help."""
    root = typer.main.get_command(app)
    assert isinstance(root, Root)
    command = root.get_command(typer.Context(root), name)

    assert (command.help or "").splitlines()[0].rstrip(".") == COMMANDS[name].summary
    assert len(COMMANDS[name].summary) <= 60


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help(name: str):
    """`-h` works everywhere, ends with 0 and writes to stdout."""
    done = cortex_here(name, "-h")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: cortex {name}")


def test_no_arguments_is_a_usage_error_that_helps():
    """`cortex` alone shows the help on stderr and ends with 2."""
    done = cortex()

    assert (done.returncode, done.stdout) == (2, "")
    assert "Usage: cortex" in done.stderr


def test_a_mistyped_command_suggests_the_nearest():
    """`cortex modles` names what was probably meant and ends with 2."""
    done = cortex_here("modles")

    assert done.returncode == 2
    assert "did you mean `cortex models`" in done.stderr


def test_a_verb_by_itself_is_found_in_its_group():
    """`cortex top` takes ":drain beast"; what comes nearest by letters would be `cortex defrag`."""
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
def test_a_time_that_makes_no_sense_is_a_usage_error(line: tuple[str, ...]):
    """It is told by the option's name, before anybody is asked."""
    done = cortex_here(*line)

    assert done.returncode == 2
    assert done.stderr.startswith(f"error: invalid value for {line[-2]}: ")


def test_the_gateway_may_be_named_before_the_command():
    """As other tools have it; named after the command it counts more."""
    before = cortex_here("-g", "http://127.0.0.1:9", "ps")
    both = cortex_here("-g", "http://127.0.0.1:9", "ps", "-g", "http://127.0.0.1:7")

    assert before.stderr.startswith("error: the gateway at http://127.0.0.1:9 ")
    assert both.stderr.startswith("error: the gateway at http://127.0.0.1:7 ")


def test_help_shows_topics_and_commands():
    """`cortex help` is the help of all, `cortex help models load` that of one, and a topic is read."""
    assert cortex_here("help").stdout == cortex_here("--help").stdout
    assert (
        cortex_here("help", "models", "load").stdout == cortex_here("models", "load", "-h").stdout
    )
    assert "130  interrupted" in cortex_here("help", "exit-codes").stdout
    assert cortex_here("help", "nope").returncode == 2


def test_a_group_lists_its_commands_with_whole_sentences():
    """What a command does is not cut off in the middle."""
    shown = " ".join(cortex_here("models", "-h").stdout.split())

    assert "where it is and why, estimate and measurements" in shown


def test_an_unreachable_gateway_ends_with_5():
    """A gateway that is not there is told on stderr, with a hint, and stdout stays empty."""
    done = cortex("ps", "--gateway", "http://127.0.0.1:9")

    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.startswith("error: the gateway at http://127.0.0.1:9 can't be reached")
    assert "\nhint: " in done.stderr


def test_authorities_that_cannot_be_read_are_named(tmp_path: Path):
    """A wrong SSL_CERT_FILE is told as such, with its path, and as no defect."""
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


def test_checking_good_files():
    """`config check` of the example files ends with 0 and says so on stdout."""
    files = sorted(str(p) for p in (ROOT / "config").glob("*.toml"))
    done = cortex_here("config", "check", *files)

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{name}: ok" for name in files]


def test_checking_a_wrong_file(tmp_path: Path):
    """`config check` names file, line and key, suggests what was meant, and ends with 1."""
    path = tmp_path / "cortex.toml"
    path.write_text('[gateway]\nlisen = "127.0.0.1:1"\n')
    done = cortex_here("config", "check", str(path))

    assert done.returncode == 1
    assert f"error: {path}:2: unknown key gateway.lisen" in done.stderr
    assert "hint: did you mean 'listen'?" in done.stderr


def test_a_file_that_a_setting_names_is_checked_with_it(tmp_path: Path):
    """`config check` and `serve neuron --check` end with 1 where the neuron would not start for want of its token."""
    path = tmp_path / "neuron.toml"
    path.write_text('[neuron]\ntoken_file = "/nonexistent/token"\n')
    checked = cortex_here("config", "check", str(path))
    started = cortex_here("serve", "neuron", "--check", "--config", str(path))

    assert (checked.returncode, started.returncode) == (1, 1)
    told = f"error: {path}:2: neuron.token_file: there is no file /nonexistent/token"
    assert told in checked.stderr
    assert "/nonexistent/token" in started.stderr


def test_a_gateways_catalogue_is_checked_with_it(tmp_path: Path):
    """The gateway would not start with it; where both files are named the error is told once."""
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


def test_show_tells_origins(tmp_path: Path):
    """`config show --origin` tells file and line, variable or default for each value."""
    path = tmp_path / "cortex.toml"
    path.write_text("[gateway]\nmax_body_mb = 5\n")
    done = cortex_here(
        *("config", "show", "gateway", "--file", str(path), "--origin", "-o", "json"),
        CORTEX_GATEWAY__LISTEN="127.0.0.1:1",
    )
    found = {s["key"]: s["origin"] for s in json.loads(done.stdout)["items"]}

    assert found["gateway.max_body_mb"] == f"{path}:2"
    assert found["gateway.listen"] == "$CORTEX_GATEWAY__LISTEN"
    assert found["gateway.models"] == "default"


@pytest.mark.parametrize("service", ["gateway", "neuron"])
def test_serve_can_check_only(service: str):
    """`serve --check` validates the settings and ends without listening."""
    assert cortex_here("serve", service, "--check").stdout == "ok\n"


def test_serve_refuses_wrong_settings(tmp_path: Path):
    """A daemon with a wrong setting ends at once with the reason, not with a traceback."""
    path = tmp_path / "neuron.toml"
    path.write_text("[neuron]\nlisten = 5\n")
    done = cortex_here("serve", "neuron", "--config", str(path))

    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {path}:2: neuron.listen")


def test_chat_without_a_prompt_or_a_person():
    """`cortex chat` with nothing to ask and nobody to converse with is a usage error, not a hang."""
    done = cortex_here("chat", "some-model")

    assert done.returncode == 2
    assert "nothing to ask" in done.stderr


def test_chat_refuses_what_is_no_text(tmp_path: Path):
    """A file that is no UTF-8, or that is not there, is a usage error and no defect."""
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    for name, said in (("latin", "is not UTF-8 text"), ("none", "does not exist")):
        done = cortex_here("chat", "some-model", "--file", str(tmp_path / name))
        assert done.returncode == 2
        assert said in done.stderr


def test_a_wrong_command_line_is_told_in_plain_words():
    """No word of the libraries that found it, and one line for a list of choices."""
    choice = cortex_here("completion", "bogus").stderr.splitlines()
    missing = cortex_here("completion").stderr.splitlines()

    assert choice[0].startswith("error: invalid value for 'shell': 'bogus' is not one of")
    assert missing[0].endswith("Choose from: bash, zsh, fish")


def test_a_closed_pipe_is_no_traceback():
    """`cortex config schema models | head -1` ends quietly."""
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
    """Contexts are added, chosen, listed and forgotten; what they hold is read back as it was given."""
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
    """There is a completion script for each of the three shells."""
    done = cortex_here("completion", shell)

    assert done.returncode == 0
    assert "_CORTEX_COMPLETE" in done.stdout


@pytest.mark.parametrize(
    ("line", "found"),
    [("help mod", ["models"]), ("help models lo", ["load", "logs"]), ("help models load x", [])],
)
def test_help_completes_commands_below_commands(line: str, found: list[str]):
    """After a noun its own commands are suggested."""
    at = {"COMP_WORDS": f"cortex {line}", "COMP_CWORD": str(len(line.split()))}
    done = cortex_here(_CORTEX_COMPLETE="complete_bash", **at)

    assert done.stdout.split() == found


@pytest.mark.parametrize(
    ("topic", "words"),
    [("exit-codes", "130"), ("environment", "CORTEX_API_KEY_FILE"), ("config", "--origin")],
)
def test_help_topics(topic: str, words: str):
    """What no single command explains can be read."""
    assert words in cortex_here("help", topic).stdout


def test_help_of_a_command_loads_no_http_client():
    """Completing and explaining a command does without httpx, which is most of a start."""
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


def test_the_embedded_engine_waits_for_no_library_that_it_can_do_without():
    """A cold start waits for every import, and each of these takes as long as all that the engine needs."""
    probe = (
        "import sys, neuron_server.embedded_engine.worker; "
        "print({'pydantic', 'fastapi', 'httpx'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60
    )

    assert done.stdout == "set()\n"
