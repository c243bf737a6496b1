"""What the documentation says exists: commands and options, files behind links, the command that CI runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import typer.main

from autoguidance.cli import register_verbs
from autoguidance.cli.common import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
USER_PAGES = [ROOT / "README.md", ROOT / "docs" / "guide.md", ROOT / "docs" / "from-edm2.md"]


def headings(text: str) -> set[str]:
    """Anchors that GitHub makes of a page's headings."""
    titles = re.findall(r"^#+\s+(.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_resolve(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = unquote(target).partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{page.name} links to {target}, which does not exist"
        if anchor:
            assert anchor in headings(file.read_text(encoding="utf-8")), f"{page.name}: {target} has no such heading"


def commands_in(text: str) -> list[list[str]]:
    """The words of every `autoguidance …` command in code blocks, without what precedes and follows it."""
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", text, flags=re.DOTALL)
    found = []
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        for part in line.split("&&"):
            words = shlex.split(part, comments=True)
            if words and Path(words[0]).name == "autoguidance":
                found.append(words[1:])
    return found


def application() -> Any:
    """The whole command line, as `main` puts it together."""
    register_verbs()
    return typer.main.get_command(app)


def resolve(words: list[str]) -> tuple[Any, list[str]]:
    """The command object that the first words name, and the words after it."""
    command = application()
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"no command `autoguidance {words[0]}`"
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize("page", USER_PAGES, ids=lambda page: page.name)
def test_commands_and_options_exist(page):
    commands = commands_in(page.read_text(encoding="utf-8"))
    assert commands
    for words in commands:
        command, rest = resolve(words)
        options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for word in rest:
            if word.startswith("--"):
                assert word.partition("=")[0] in options, f"`autoguidance {' '.join(words)}`: no option {word}"


def test_commands_of_the_readmes_table_exist_and_are_all():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `autoguidance ([a-z ]+)` \|", text, flags=re.MULTILINE)
    for name in named:
        resolve(name.split())
    assert {name.split()[0] for name in named} == set(application().commands)


def test_every_command_shows_an_example():
    def leaves(command: Any, name: str):
        children = getattr(command, "commands", None)
        if not children:
            yield name, command
        for child in children or {}:
            yield from leaves(children[child], f"{name} {child}")

    for name, command in leaves(application(), "autoguidance"):
        assert f"Example: {name}" in (command.epilog or ""), f"`{name} --help` shows no example"
        words = shlex.split((command.epilog or "").partition("Example: ")[2].split("\n")[0])
        options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        unknown = [word for word in words if word.startswith("--") and word.partition("=")[0] not in options]
        assert unknown == [], f"the example of `{name}` has options that do not exist"


@pytest.mark.parametrize(("name", "end"), [("run", "autoguidance run"), ("test", "pytest -n 2")])
def test_ci_finds_the_readmes_commands(name, end):
    script = [sys.executable, str(ROOT / ".ci" / "readme_command.py"), name]
    command = subprocess.run(script, capture_output=True, text=True, check=True).stdout.strip()
    assert command.startswith("python3 -m venv .venv && .venv/bin/pip install -c constraints.txt ")
    assert command.endswith(end)
    assert "\n" not in command


def test_ci_refuses_a_readme_without_its_command(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("<!-- command: other -->\n```bash\ntrue\n```\n")
    script = [sys.executable, str(ROOT / ".ci" / "readme_command.py"), "test", str(page)]
    run = subprocess.run(script, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "mark exactly one" in run.stderr


def test_the_licence_is_whole():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
