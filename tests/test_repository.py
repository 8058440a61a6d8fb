"""What the repository may hold: text, small recordings and figures, and no binaries that came along by mistake."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LARGEST = 500_000  # bytes; the largest figure of docs/ has 435,000
BINARY = {".png", ".npz", ".safetensors"}  # figures and recordings


@pytest.mark.unit
def test_no_stray_binary_is_tracked():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert files
    too_large = [str(f.relative_to(ROOT)) for f in files if f.is_file() and f.stat().st_size > LARGEST]
    assert not too_large, f"more than {LARGEST} bytes: {too_large}"
    binary = [f for f in files if f.is_file() and f.suffix not in BINARY and b"\0" in f.read_bytes()[:8192]]
    assert not binary, f"neither text nor {sorted(BINARY)}: {[str(f.relative_to(ROOT)) for f in binary]}"
