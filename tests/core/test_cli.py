import argparse
import subprocess
import sys

import pytest

from fusionocc_core import cli
from fusionocc_core.models.multiplications import GIGA_MACS
from fusionocc_core.presets import SHIPPED_WEIGHTS, list_presets


def command(run):
    parser = argparse.Namespace(parse_args=lambda arguments: argparse.Namespace(run=run, verbose=False))
    return lambda: parser


@pytest.mark.parametrize(
    "error",
    [ValueError("preset='x': [expected] y"), FileNotFoundError(2, "No such file", "data"), PermissionError("no")],
)
def test_mistakes_of_the_user_are_one_line_and_exit_2(monkeypatch, capsys, error):
    def run(args):
        raise error

    monkeypatch.setattr(cli, "make_parser", command(run))
    assert cli.main([]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("fusionocc: error: ")
    assert str(error) in printed.err  # square brackets survive, nothing is taken for markup
    assert printed.err.count("\n") == 1


def test_bugs_keep_their_traceback(monkeypatch):
    def run(args):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(cli, "make_parser", command(run))
    with pytest.raises(ZeroDivisionError):
        cli.main([])


def test_interrupt_is_exit_130(monkeypatch):
    def run(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "make_parser", command(run))
    assert cli.main([]) == 130


def test_help_lists_every_command_without_loading_torch():
    program = (
        "import sys\nfrom fusionocc_core import cli\ncli.make_parser().print_help()\n"
        "sys.exit('torch is loaded' if 'torch' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in (*cli.COMMANDS, "bag", "demo"):
        assert name in done.stdout


def test_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["nonsense"])
    assert stop.value.code == 2
    assert "invalid choice: 'nonsense'" in capsys.readouterr().err


def test_presets_are_listed_whole_on_a_narrow_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["presets"]) == 0
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert max(map(len, printed.splitlines())) <= 80
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if "│" in line]
    told = {row[0]: row[1:] for row in rows if row[0]}
    assert list(told) == list(list_presets())
    assert [told["fusionocc-base"][i] for i in (0, 2, 3)] == ["109.09", "6x512x1408", "1+7"]
    assert float(told["flashfusion-mini"][1]) == pytest.approx(GIGA_MACS["flashfusion-mini"], abs=0.05)
    assert {name for name, row in told.items() if row[-1] == "ship"} == set(SHIPPED_WEIGHTS)
