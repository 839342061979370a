import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def described() -> dict[str, str]:
    """Path to description, from the fenced block below the heading 'Layout'."""
    assert README.is_file(), "README.md is missing"
    block = re.search(r"^#+ Layout\s*$.*?^```[^\n]*\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    assert block, "README.md has no fenced block below a heading 'Layout'"
    lines = [line.strip() for line in block[1].splitlines() if line.strip()]
    parted = [re.fullmatch(r"(\S+)\s+# (.+)", line) for line in lines]
    wrong = [line for line, match in zip(lines, parted, strict=True) if not match]
    assert not wrong, f"lines of the layout have the form 'path  # text': {wrong}"
    paths = [match[1] for match in parted if match]
    twice = sorted({path for path in paths if paths.count(path) > 1})
    assert not twice, f"stand twice in the layout: {twice}"
    return {match[1]: match[2] for match in parted if match}


def test_layout_names_every_file_once() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = set(listed.stdout.splitlines())
    layout = set(described())
    assert not tracked - layout, f"not in README's layout: {sorted(tracked - layout)}"
    assert not layout - tracked, f"in README's layout, but not in the tree: {sorted(layout - tracked)}"
