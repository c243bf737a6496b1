"""`autoguidance report`: parse, write, say where the page is."""

import importlib

import pytest
from typer.testing import CliRunner

from autoguidance.cli.common import app
from autoguidance.errors import UserError

for verb in ("data", "report"):  # two verbs, so that typer makes a group of them
    importlib.import_module(f"autoguidance.cli.{verb}")


def test_one_page_about_several_folders(make_run, tmp_path):
    out = tmp_path / "pages" / "both.html"
    result = CliRunner().invoke(app, ["report", str(make_run("a")), str(make_run("b")), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert str(out) in result.output
    assert out.read_text(encoding="utf-8").count("<section>") == 2


def test_a_missing_folder_is_the_users_mistake(tmp_path):
    result = CliRunner().invoke(app, ["report", str(tmp_path / "absent"), "--out", str(tmp_path / "r.html")])
    assert isinstance(result.exception, UserError)
    with pytest.raises(UserError, match=r"absent is not a folder; name the output folder"):
        raise result.exception
