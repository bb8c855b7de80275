"""torch.hub: which networks it builds, from the repository alone."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sanbench.models import MODELS

ROOT = Path(__file__).parent.parent


def test_the_hub_lists_the_models(monkeypatch):
    monkeypatch.setattr(torch.hub, "_get_cache_or_reload", lambda *args, **options: str(ROOT))  # in place of a download
    assert torch.hub.list("owner/repository", trust_repo=True) == sorted(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_the_hub_builds(name):
    with torch.device("meta"):
        model = torch.hub.load(str(ROOT), name, source="local", num_classes=3)
        assert model(torch.empty(2, 3, 64, 64)).shape == (2, 3)
    assert model.spec.name == name


def test_the_hubs_dependencies_are_what_is_imported(tmp_path):
    """In a process that sees the repository only through torch.hub."""
    code = "import sys, torch; model = torch.hub.load(sys.argv[1], 'san10_pairwise', source='local', num_classes=2, width=0.5)"
    code += "; print(model.spec.label, sys.modules['sanbench'].__file__)"
    done = subprocess.run([sys.executable, "-I", "-c", code, str(ROOT)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("san10_pairwise width=0.5") and str(ROOT) in done.stdout
