import base64
from pathlib import Path

import numpy as np
import pytest

from balsa_ray.reporting.page import Section, audio_player, page, paragraph, table, write_page
from balsa_ray.reporting.plots import bars, lines, spectrogram


def test_replies_of_a_model_are_text_and_never_html() -> None:
    evil = "<script>alert(1)</script>"
    html = page(evil, evil, [Section(evil, [paragraph(evil), table([evil], [[evil]]), evil])])
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 9  # title twice, lead, navigation, heading, and four in the parts


def test_a_page_needs_no_network(tmp_path: Path) -> None:
    write_page(tmp_path / "report.html", "t", "l", [Section("s", [lines({"a": ([1, 2], [3, 4])}, "step", "loss")])])
    html = (tmp_path / "report.html").read_text()
    assert "http" not in html
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_player_holds_the_files_bytes(tmp_path: Path) -> None:
    (tmp_path / "clip.flac").write_bytes(b"fLaC123")
    player = audio_player(tmp_path / "clip.flac")
    assert base64.b64encode(b"fLaC123").decode() in player
    assert "audio/flac" in player
    with pytest.raises(ValueError, match=r"\.flac"):
        audio_player(tmp_path / "clip.xyz")


def test_plots_are_images_with_a_text_for_readers() -> None:
    plots = [
        bars(["random", "popular"], {"a": [(50, 40, 60), (70, 65, 75)], "b": [(1, 0, 2), (3, 2, 4)]}, "accuracy (%)"),
        lines({"one": ([0, 1], [1.0, 0.5]), "two": ([2, 3], [0.4, 0.3])}, "step", "loss"),
        spectrogram(np.zeros(16_000, np.float32), 16_000),
    ]
    for plot in plots:
        assert plot.startswith('<img alt="')
        assert base64.b64decode(plot.split("base64,")[1].split('"')[0]).startswith(b"\x89PNG")
