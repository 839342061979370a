import base64
import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from balsa_ray.reporting.page import Section, audio_player, page, paragraph, samples_player, table, write_page
from balsa_ray.reporting.plots import bars, counts, heatmap, histogram, lines, spectrogram


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


def test_samples_are_played_as_they_are() -> None:
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000, dtype=np.float32)
    player = samples_player(tone, 16_000)
    heard, rate = soundfile.read(io.BytesIO(base64.b64decode(player.split("base64,")[1].split('"')[0])))
    assert len(heard) / rate == pytest.approx(1.0, abs=0.05)
    assert np.abs(np.fft.rfft(heard)).argmax() * rate / len(heard) == pytest.approx(440, abs=2)


def test_plots_are_images_with_a_text_for_readers() -> None:
    plots = [
        bars(["random", "popular"], {"a": [(50, 40, 60), (70, 65, 75)], "b": [(1, 0, 2), (3, 2, 4)]}, "accuracy (%)"),
        lines({"one": ([0, 1], [1.0, 0.5]), "two": ([2, 3], [0.4, 0.3])}, "step", "loss"),
        spectrogram(np.zeros(16_000, np.float32), 16_000),
        counts({"a $5 label": 3, "b" * 99: 0}, "samples"),
        histogram([0, 1, 2, 4], [0, 5, 0, 2], "words", "samples"),
        histogram([0, 1], [0, 0], "words", "samples"),
        heatmap(["a", "b"], np.array([[3, 1], [1, 2]]), "both"),
        heatmap(["a"], np.array([[0]]), "both"),
    ]
    for plot in plots:
        assert plot.startswith('<img alt="')
        assert base64.b64decode(plot.split("base64,")[1].split('"')[0]).startswith(b"\x89PNG")
