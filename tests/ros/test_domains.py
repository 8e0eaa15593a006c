"""Claims of DDS domains: between the programs of one machine, until the end of each."""

import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from fusionocc_ros import domains
from fusionocc_ros.domains import claimed_domain


@pytest.fixture(autouse=True)
def empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_no_two_claims_are_the_same_until_all_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domains, "DOMAINS", range(5, 9))
    with ExitStack() as claims:
        assert {claims.enter_context(claimed_domain()) for _ in range(4)} == {5, 6, 7, 8}
        with pytest.raises(RuntimeError, match="all DDS domains from 5 to 8 are claimed"), claimed_domain():
            pass
    with claimed_domain() as number:
        assert number in {5, 6, 7, 8}


def test_a_claim_holds_for_other_processes_and_dies_with_its_own(
    monkeypatch: pytest.MonkeyPatch, empty_folder: Path
) -> None:
    monkeypatch.setattr(domains, "DOMAINS", range(5, 6))
    program = (
        f"import tempfile; tempfile.tempdir = {str(empty_folder)!r}\n"
        "from fusionocc_ros import domains\n"
        "domains.DOMAINS = range(5, 6)\n"
        "claim = domains.claimed_domain()\n"
        "print(claim.__enter__(), flush=True)\n"
        "input()\n"
    )
    other = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "5\n"
        with pytest.raises(RuntimeError, match="claimed"), claimed_domain():
            pass
    finally:
        other.kill()
        other.communicate()
    with claimed_domain() as number:
        assert number == 5
