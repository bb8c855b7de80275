"""What attention costs on paper: counted by hand where that is easy, and within what was promised."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="tiles are those of the Triton kernels")

from sanbench.bench.roofline import CHIPS, cost, halo, roofline
from sanbench.bench.shapes import AttentionShape
from sanbench.errors import InputError

DOCS = Path(__file__).parent.parent / "docs" / "performance.md"


@pytest.mark.parametrize("name", ["san19_pairwise", "san19_patchwise"])
def test_attention_moves_little_more_than_its_tensors(name: str) -> None:
    """Limits: 1.1 times the fewest bytes; SAN19 in 30 us an image on an A100, where expanded memory traffic alone takes 300."""
    found = roofline(name, torch.bfloat16, 128)
    assert all(1 <= stage.dram / stage.fewest <= 1.1 for stage in found.stages)
    assert found.fused["A100"] < 30e-6 and found.expanded["A100"] > 300e-6
    docs = DOCS.read_text()
    for stage in found.stages:
        cells = [f"{stage.dram / 1e6:.3f}", f"{stage.dram / stage.fewest:.2f}", f"{stage.l2 / 1e6:.2f}", f"{stage.halo:.2f}"]
        cells += [f"{stage.multiply_adds / 1e6:.1f}"]
        cells += [f"{1e6 * stage.time('A100'):.2f} ({stage.bound('A100')})", f"{1e6 * stage.expanded_time('A100'):.1f}"]
        cells += [f"{1e6 * stage.time('H100'):.2f}", f"{1e6 * stage.expanded_time('H100'):.1f}"]
        kind = name.split("_")[1]
        assert f"| {kind} attention {stage.stage} | {' | '.join(cells)} |" in docs
    assert all(f"{1e6 * times['A100']:.{digits}f}" in docs for times, digits in ((found.fused, 1), (found.expanded, 0)))


def test_a_stage_by_hand() -> None:
    """Stage 4, pairwise: 49 pixels of 49 neighbours; phi and psi 128 channels, the hidden layer 128, weights 64, values 512."""
    found = cost("pairwise", 4, "attention", torch.bfloat16, 128)
    assert found.multiply_adds == 49 * 49 * (128 * 128 + 128 * 64 + 512)
    parameters = 2 * 130 + 128 * 130 + 2 * 128 + 64 * 128 + 64
    maps = 2 * 49 * (128 + 128 + 512 + 512)
    assert found.fewest == maps + 4 * parameters / 128
    assert found.dram == maps + 6 * parameters / 128  # read in float32, written in bfloat16
    assert found.seconds["A100"]["exponentials"] == 49 * 49 * 64 / (108 * 1.41e9 * 16)


def test_the_halo_of_a_tile() -> None:
    """One program for all of 7 x 7 reads each pixel once; runs of 16 read whole rows; a pixel alone reads its 49."""
    x = AttentionShape.of("pairwise", 4)
    assert halo(x, {"PIXELS": 64, "COLUMNS": 0}) == (1.0, 1 / 49)
    assert halo(x, {"PIXELS": 7, "COLUMNS": 0})[0] == (4 + 5 + 6 + 7 + 6 + 5 + 4) / 7
    assert halo(x, {"PIXELS": 1, "COLUMNS": 0})[1] == 1


def test_weights_that_do_not_stay_are_counted_for_each_neighbour() -> None:
    """In float32 at stage 4 a program of 16 pixels reads them 49 times; in bfloat16 once."""
    found = {dtype: cost("pairwise", 4, "attention", dtype, 128) for dtype in (torch.float32, torch.bfloat16)}
    parameters = AttentionShape.of("pairwise", 4).parameters
    for dtype, times in ((torch.float32, 49), (torch.bfloat16, 1)):
        maps = 49 * (128 + 512 + found[dtype].halo * (128 + 512))
        assert found[dtype].l2 == pytest.approx(dtype.itemsize * (maps + 4 * times * parameters))
    assert all(found[torch.float32].time(chip) > found[torch.bfloat16].time(chip) for chip in CHIPS)


@pytest.mark.parametrize(("name", "batch_size", "named"), [("resnet50", 1, "resnet50"), ("san19", 0, "batch size 0")])
def test_refused(name: str, batch_size: int, named: str) -> None:
    with pytest.raises(InputError, match=named):
        roofline(name, torch.bfloat16, batch_size)
