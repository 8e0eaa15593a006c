"""End to end against results that ship with the repository (tests/goldens/fusionocc_README.md)."""

import pytest
from fusionocc_cases import golden_model, golden_results
from safetensors.torch import load_file


@pytest.mark.parametrize("habits", ["official", "correct"])
def test_results_are_those_that_were_kept(habits, goldens):
    kept = load_file(goldens / f"fusionocc_{habits}.safetensors")
    results = golden_results(golden_model(habits))
    assert set(results) == set(kept)
    for name, reference in kept.items():
        assert results[name].shape == reference.shape
        assert (results[name] - reference).abs().max() <= 1e-4 * reference.abs().max(), name
    for channel, reference in zip(results["fused_BCZYX"].unbind(1), kept["fused_BCZYX"].unbind(1), strict=True):
        assert (channel - reference).abs().max() <= 1e-4 * reference.abs().max()


def test_the_two_differ(goldens):
    official, correct = (load_file(goldens / f"fusionocc_{name}.safetensors") for name in ("official", "correct"))
    assert (official["logits_BKXYZ"] - correct["logits_BKXYZ"]).abs().max() > 0.1
