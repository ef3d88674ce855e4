"""The benchmark's arithmetic and its page, from made-up measurements; nothing is timed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import peers
from bench.__main__ import parse
from bench.images import image_data, pairs
from bench.plan import SECTIONS, USUAL
from bench.report import document
from lib.views.augment import normalize

ROOT = Path(__file__).parents[1]


def record(*runs: dict, **changes) -> dict:
    """A section's measurements: one row of ours, which took 0.5 s twice, and of a peer."""
    row = {"name": "small, batch 256", "images": 256}
    facts = {"date": "today", "commit": "abc", "machine": "a processor", "versions": "torch 2", "load": 0.1}
    ours = [{"seconds": 0.5, "memory": 700.4}, {"seconds": 0.5, "memory": 600.0}][: len(runs)]
    rows = [{**row, "runs": {"ours.step": ours, "peers.leftthomas_step": list(runs)}}]
    return {**facts, "quiet": True, "rows": rows, **changes}


def test_the_page_has_times_rates_ratios_and_the_largest_memory():
    page = document({"step": record({"seconds": 5.0, "memory": 9.0}, {"seconds": 1.0, "memory": 8.0})})
    assert "| Engram | 500 (500 to 500) ms | 512 (512 to 512) | 1 | 700 |" in page
    assert "| leftthomas/SimCLR recipe | 3 (1 to 5) s | 154 (51.2 to 256) | 6 (2 to 10) | 9 |" in page
    assert "- today, commit abc; load before the start: 0.1" in page and "not quiet" not in page
    assert SECTIONS["data"] not in page


def test_the_page_says_what_failed_what_was_not_reached_and_that_a_machine_was_busy():
    page = document({"step": record({}, quiet=False)})
    assert "| leftthomas/SimCLR recipe | failed |" in page and "The machine was not quiet" in page
    page = document({"accuracy": record({"seconds": None, "memory": 1.0, "note": "9 epochs, kNN 50 %"})})
    assert "| leftthomas/SimCLR recipe | not reached |" in page and "recipe: 9 epochs, kNN 50 %." in page


def test_the_page_in_the_repository_is_that_of_the_measurements_beside_it():
    measured = json.loads((ROOT / "bench/results.json").read_text())
    assert (ROOT / "bench/results.md").read_text() == document(measured)
    assert set(measured) == set(USUAL["cpu"])


def test_the_peer_is_judged_on_images_as_it_was_trained_on():
    data = peers.as_the_recipe(image_data(4, 2))
    picture = data.train_images[:1]
    plain = peers.PLAIN(picture[0].permute(1, 2, 0).numpy())
    torch.testing.assert_close(normalize(picture, data.mean, data.std)[0], plain)


def test_the_contrasts_that_are_compared_are_one():
    first, second = (view.detach() for view in pairs(12))
    rows = torch.cat([first, second]) / 0.5
    similarity = rows @ torch.cat([first, second]).T
    expected = torch.nn.functional.cross_entropy(similarity.fill_diagonal_(-torch.inf), torch.arange(12).roll(6))
    torch.testing.assert_close(peers.contrast(3 * first, second), expected)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["stepp"], "there is no section 'stepp'"), (["--repetitions", "0"], "--repetitions is 0; allowed: at least 1")],
)
def test_what_cannot_be_measured_is_refused(arguments, words, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bench", *arguments])
    with pytest.raises(SystemExit):
        parse()
    assert words in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("section", ["step", "loss", "embed"])
def test_a_section_runs_in_tiny_sizes(section):
    """The data path needs kornia, the time to accuracy real images."""
    done = subprocess.run(
        [sys.executable, "-m", "bench", section, "--quick", "--repetitions", "1"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert f"## {SECTIONS[section]}" in done.stdout
