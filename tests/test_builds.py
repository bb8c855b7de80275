"""The C++ as other compilers build it: with sanitizers, with clang, and not at all."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.operator_cases import BUILDS

ROOT = Path(__file__).parent.parent
SANITIZE = "-g1 -fsanitize=address,undefined -fno-sanitize-recover=all"
AWKWARD = """
import sys
from pathlib import Path
import torch
from sanbench.ops.cpu import kernels
kernels.FOLDER, name = Path(sys.argv[1]), sys.argv[2]
from tests.support.operator_cases import SIZES, case, compare, statistics_of
from tests import test_cpu_blocks as blocks
from tests import test_cpu_whole_blocks as whole
from tests.test_cpu_normalise import test_channel_moments, test_normalised_relu
torch.set_num_threads(3)
for number, size in enumerate([*SIZES, *[None] * 9]):
    for kind in ("pairwise", "patchwise"):
        values = case(7 * number + len(kind), kind, size, position=number % 3 > 0)
        compare(f"{kind}_attention", values, name)
        compare(f"{kind}_attention", values, name, [0, 1])
        for depth in (0, 1):
            compare(f"{kind}_statistics", statistics_of(values, depth), name)
for shape in ((1, 1, 1, 1), (2, 5, 3, 7), (3, 33, 9, 4), (2, 64, 40, 40), (3, 20, 1, 1), (1, 3, 1, 70)):
    for layout in (torch.contiguous_format, torch.channels_last):
        test_channel_moments(shape, layout, name)
        test_normalised_relu(shape, layout, name)
for shape in blocks.POOLED:
    for wanted in ([0], [0, 1, 2]):
        blocks.test_normalised_pool(wanted, shape, name)
for side in ((2, 2), (3, 7), (40, 40)):
    for inputs, channels in ((2, 1), (3, 5), (3, 64), (4, 33)):
        blocks.test_normalised_pool_of_a_linear(side, inputs, channels, name)
for values in blocks.LINEARS:
    blocks.test_normalised_linear(values, name)
for size in whole.SHAPES:
    for kind, position in whole.KINDS:
        whole.test_a_training_step_is_that_of_the_operators(size, kind, position, name)
        whole.test_evaluation_and_the_gradient_of_its_images_are_those_of_the_operators(size, kind, position, name)
print("agrees")
"""


def built(folder: Path, **environment: str) -> Path:
    """setup.py's builds with other compilers or flags: the folder that holds them."""
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(folder), "--build-temp", str(folder / "objects")]
    subprocess.run(command, cwd=ROOT, env=os.environ | environment, check=True, capture_output=True)
    return folder / "sanbench/ops/cpu"


def agrees(folder: Path, name: str, **environment: str) -> None:
    command = [sys.executable, "-c", AWKWARD, str(folder), name]
    outcome = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)
    assert (outcome.returncode, outcome.stdout) == (0, "agrees\n"), outcome.stderr[-6000:]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
def test_addresses(tmp_path: Path) -> None:
    """AddressSanitizer and UndefinedBehaviorSanitizer find nothing in operators and blocks on awkward shapes, in any build."""
    folder = built(tmp_path, CFLAGS=SANITIZE, LDFLAGS=SANITIZE)
    libraries = [
        subprocess.run(["g++", f"-print-file-name={library}"], capture_output=True, text=True, check=True).stdout.strip()
        for library in ("libasan.so", "libubsan.so", "libstdc++.so.6")
    ]
    for name in BUILDS:
        agrees(folder, name, LD_PRELOAD=" ".join(libraries), ASAN_OPTIONS="detect_leaks=0")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(shutil.which("clang++") is None, reason="no clang++ here")
def test_clang(tmp_path: Path) -> None:
    folder = built(tmp_path, CC="clang", CXX="clang++", LDSHARED="clang++ -shared", LDCXXSHARED="clang++ -shared")
    for name in BUILDS:
        agrees(folder, name)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_installing_without_a_compiler(tmp_path: Path) -> None:
    """pip succeeds, and what it installed serves by tiles of the specification."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("sanbench", "sanbench_cli"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so", "*.pyd"))
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--target", str(target), "."]
    subprocess.run(pip, cwd=source, env=os.environ | {"CC": "false", "CXX": "false"}, check=True, capture_output=True)
    code = """
import torch, sanbench
from sanbench.ops import cpu
sanbench.build_model("san10", num_classes=3, width=0.5, blocks=(1, 1, 1, 1, 1)).eval()(torch.rand(1, 3, 32, 32))
print(sanbench.__file__, cpu.available(), cpu.last_kernel("pairwise_attention"))
"""
    environment = os.environ | {"PYTHONPATH": str(target)}
    command = [sys.executable, "-c", code]
    outcome = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert outcome.stdout == f"{target}/sanbench/__init__.py ('tiled', 'plain') tiled\n", outcome.stderr
