from pathlib import Path
from typing import Any

from balsa_ray.identity import stable_hash
from balsa_ray.schema import SAMPLE
from balsa_ray.synthesis.output import row_files, write_rows
from balsa_ray.synthesis.statistics import EDGES, EXAMPLES, Statistics, corpus_of, most_frequent, rows_at, statistics


def row(number: int, **more: Any) -> dict[str, Any]:
    found = {"id": stable_hash(number), "kind": "present", "gate": "passed", "audio": [f"/a/{number}.wav"]}
    found |= {"present": ["rain"], "absent": [], "response": "I hear rain.", "prompt_tokens": 7, "response_tokens": 4}
    return found | more


def of(folder: Path, *files: list[dict[str, Any]], seed: int = 0) -> Statistics:
    for rows in files:
        write_rows(folder / "samples", rows, SAMPLE)
    return statistics(row_files(folder), seed)


def test_rows_are_counted_by_corpus_label_and_length(tmp_path: Path) -> None:
    found = of(
        tmp_path,
        [row(1), row(2, present=["rain", "siren"], absent=["dog"], response="a b c d e f g h", response_tokens=5000)],
        [row(3, audio=["/b/x.tar#bytes=1+2"], present=["siren"]), row(4, present=[], response="", prompt_tokens=0)],
    )
    assert found.corpora == {("/a", "passed"): 3, ("/b/x.tar", "passed"): 1}
    assert found.present == {"rain": 2, "siren": 2}
    assert found.absent == {"dog": 1}
    assert found.together == {("rain", "rain"): 2, ("rain", "siren"): 1, ("siren", "siren"): 2}
    bins = {name: {EDGES[i]: n for i, n in enumerate(numbers) if n} for name, numbers in found.histograms.items()}
    assert bins == {
        "prompt_tokens": {0: 1, 6: 3},
        "response_tokens": {4: 3, 4096: 1},
        "response_words": {0: 1, 3: 2, 8: 1},
    }
    assert most_frequent(found.present, 1) == {"rain": 2}


def test_the_same_rows_in_other_files_have_the_same_statistics(tmp_path: Path) -> None:
    rows = [row(i, present=[f"label {i % 7}"]) for i in range(200)]
    one = of(tmp_path / "one", rows)
    many = of(tmp_path / "many", rows[150:], rows[:30], rows[30:150])
    assert [rows_at(found.examples, ["id"]) for found in (one, many)] == [rows_at(many.examples, ["id"])] * 2
    assert len(one.examples) == EXAMPLES
    one.examples = many.examples = []
    assert one == many
    assert of(tmp_path / "one", seed=1).examples != of(tmp_path / "one", seed=2).examples


def test_what_was_rejected_counts_for_the_corpus_alone(tmp_path: Path) -> None:
    found = of(tmp_path, [row(1, gate="empty", present=["rain"], absent=["dog"])])
    assert (found.corpora, found.present, found.together) == ({("/a", "empty"): 1}, {}, {})
    assert len(found.examples) == 1
    assert statistics([], 0) == Statistics()


def test_a_corpus_is_a_folder_or_a_file_of_recordings() -> None:
    names = ["/c/a.flac", "/c/a.flac#t=1,2", "/c/s.tar#bytes=0+5", "s3://b/p/c.parquet#row=3&t=0,1", "s3://b/p/a.wav"]
    assert [corpus_of(name) for name in names] == ["/c", "/c", "/c/s.tar", "s3://b/p/c.parquet", "s3://b/p"]
