"""The report's tables and pictures, from files of made-up runs."""

import json
import math
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas
import pytest

from lib.report import charts, tables
from lib.report.dose import relative_pull
from lib.report.figures import readable, save_figure
from lib.report.page.build import sortable_tables
from lib.report.records import Groups, Record, confusion_counts, ranked, read_record, replicates
from lib.report.results import write_results
from lib.report.show import main, show
from lib.runtime.files import read_arrays, read_json, write_json
from tests.faults.refusals import refused
from tests.report_runs import (
    CLASSES,
    CODE,
    HALVES,
    PARTS,
    RUNS,
    TEST_IMAGES,
    WRITTEN,
    titles,
    write_run,
    write_runs,
    written,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp("runs"), RUNS)


@pytest.fixture(scope="module")
def groups(root) -> Groups:
    return replicates(read_record(variant, root) for variant in RUNS)


@pytest.fixture(scope="module")
def frame(root) -> pandas.DataFrame:
    return tables.read_results(root / "metrics/results.csv")


def page_of(root: Path, **settings) -> str:
    return tables.markdown(tables.result_rows(write_runs(root, {"simclr": settings})))


def test_results_csv_has_a_row_for_every_variant_and_latent(root, frame):
    assert list(frame[frame["variant"] == "dual"]["latent"]) == list(HALVES) and len(frame) == len(RUNS) + 3
    scores = read_json(root / "data/scores/simclr_1.json")
    row, latent = frame[frame["variant"] == "simclr_1"].iloc[0], scores["latents"]["h"]
    assert (row["group"], row["seed"], row["probe_strength"]) == ("simclr", 1, 0.01)
    assert row[["top1", "knn", "validation_top1"]].tolist() == [latent[k] for k in ("top1", "knn", "validation_probe")]
    assert frame[frame["variant"] == "untrained"][["batch_size", "optimizer", "gamma"]].isna().all(axis=None)


def test_replicates_are_one_row_with_mean_and_deviation_against_a_loop(frame):
    table = tables.summary(frame)
    first, last = ("simclr", "untrained", "dual · upper", "supervised, same views", "vicreg"), ("lower", "both", "mean")
    published = [f"{name} (published)" for name in ("simclr", "joint", "dual")]
    assert list(table["model"]) == [*first, *published, *(f"dual · {name}" for name in last)]
    row = table.iloc[0]
    assert (row["n"], row["seeds"]) == (3, "0, 1, 2")
    for key in ("top1", "knn", "validation_top1", "study_top1"):
        values = [getattr(run, key) for run in frame.itertuples() if run.variant.startswith("simclr")]
        mean = sum(values) / 3
        assert row[key] == pytest.approx(mean)
        assert row[f"{key}_sd"] == pytest.approx((sum((value - mean) ** 2 for value in values) / 2) ** 0.5)
        assert row[f"{key}_sd"] > 0
    assert table.iloc[1:][[f"{key}_sd" for key in tables.MEASURED]].isna().all(axis=None)


def test_the_difference_to_simclr_is_paired_by_seed_with_students_interval(tmp_path):
    """Seed 3 has no SimCLR and does not count; t of 90 % with two degrees of freedom is 2.920."""
    runs = {f"simclr_{seed}": {"seed": seed} for seed in (0, 1, 2)}
    runs |= {f"joint_{seed}": {"seed": seed, "gamma": 0.1, "wrong": 0.2} for seed in (0, 1, 2, 3)}
    runs |= {"floor": {"epochs": 0}, "one": {"gamma": 0.2}}
    frame = tables.result_rows(write_runs(tmp_path, runs))
    table, page = tables.summary(frame).set_index("model"), tables.markdown(frame)
    top1 = {name: read_json(tmp_path / f"data/scores/{name}.json")["latents"]["h"]["top1"] for name in runs}
    differences = [top1[f"joint_{seed}"] - top1[f"simclr_{seed}"] for seed in (0, 1, 2)]
    row = table.loc["joint_0"]
    assert row["delta_simclr"] == pytest.approx(statistics.mean(differences)) and row["n"] == 4
    assert row["delta_simclr_sd"] == pytest.approx(2.91999 * statistics.stdev(differences) / 3**0.5, rel=1e-5)
    assert table.loc[["simclr_0", "floor", "one"], "delta_simclr"].isna().all(), "itself, one seed"
    assert "| Δ simclr |" in page and f"| {row['delta_simclr']:+.2f} ± {row['delta_simclr_sd']:.2f} |" in page


def test_a_row_has_the_floor_of_its_own_kind(tmp_path):
    small, lab = 1_361_000, 681_088
    runs = {
        "floor": {"epochs": 0, "latents": ("h",)},
        "floor_1": {"epochs": 0, "seed": 1, "latents": ("h",)},
        "floor_halves": {"epochs": 0, "latents": ("upper", "lower", "both"), "options": {"latents": "halves"}},
        "floor_codes": {"method": "kwta", "epochs": 0, "latents": ("code", "h", "both")},
        "floor_cmc": {"method": "cmc", "epochs": 0, "latents": ("h", "l"), "encoder_parameters": lab},
        "floor_layers": {"method": "cpc", "epochs": 0, "latents": ("layer6", "layer1"), "encoder": "vgg6"},
        "clapp": {"method": "cpc", "latents": ("layer6", "layer1"), "encoder": "vgg6"},
        "dual": {"latents": ("upper", "lower", "both"), "options": {"latents": "halves"}},
        "three": {"latents": ("upper", "lower", "third", "both"), "options": {"latents": "three"}},
        "vicreg": {"method": "vicreg", "projections": ("y",)},
        "kwta": {"method": "kwta", "latents": ("code", "h", "both")},
        "cmc": {"method": "cmc", "latents": ("h", "l"), "encoder_parameters": lab},
        "filters": {"method": "patch_filters", "encoder": "shallow", "encoder_parameters": small},
    }
    table = tables.summary(tables.result_rows(write_runs(tmp_path, runs))).set_index("model")
    floors = {
        "vicreg": table.loc["floor"],  # the mean of two
        **{f"kwta · {name}": table.loc[f"floor_codes · {name}"] for name in ("code", "h", "both")},
        **{f"dual · {name}": table.loc[f"floor_halves · {name}"] for name in ("upper", "both")},
        "cmc · h": table.loc["floor_cmc · h"],
        "cmc · l": table.loc["floor_cmc · l"],
        "clapp · layer1": table.loc["floor_layers · layer1"],
    }
    for name, own in floors.items():
        assert table.loc[name, "floor_top1"] == pytest.approx(own["top1"]), name
    without = ["filters", "three · upper", "three · both", "floor", "vicreg · y", "floor_cmc · h"]
    assert table.loc[without, "floor_top1"].isna().all()


@pytest.mark.parametrize(
    ("term", "gamma", "temperature", "distance", "percent"),
    [("pull", 0.01, 0.5, 8.9, 14.4), ("pull", 0.0315, 0.2, 11.2, 14.4), ("push", 0.2, 0.5, 8.9, -32.3)],
)
def test_the_dose_of_a_term_is_printed_as_the_study_had_it(tmp_path, term, gamma, temperature, distance, percent):
    """The distance is that of the last epoch; -32 and +14 % are docs/methods.md's."""
    options = {"term": term, "temperature": temperature}
    run = {"joint": {"gamma": gamma, "options": options, "parts": PARTS, "distance": distance}, "simclr": {}}
    frame = tables.result_rows(write_runs(tmp_path, run))
    table, page = tables.summary(frame).set_index("model"), tables.markdown(frame)
    assert table.loc["joint", "dose"] == pytest.approx(percent, abs=0.1) and pandas.isna(table.loc["simclr", "dose"])
    assert "| Dose λ, % |" in page and f"| {percent:+.1f} |" in page


def test_a_terms_pull_equals_its_gradient_as_a_share_of_nt_xents():
    """d/dc of gamma D and of - gamma log D against 1 / (N t) of each of N positives, by differences."""
    count, gamma, temperature, cosine, step = 256, 0.03, 0.4, 0.8, 1e-6

    def distance(c: float) -> float:
        return (2 * (count - 1) * (1 - cosine) + 2 * (1 - c)) ** 0.5  # all pairs but one stay

    for term, value in {"pull": distance, "push": lambda c: -math.log(distance(c))}.items():
        pull = -gamma * (value(cosine + step) - value(cosine - step)) / (2 * step)
        share = 100 * pull * count * temperature
        assert relative_pull(term, gamma, count, temperature, distance(cosine)) == pytest.approx(share, rel=1e-4)


def test_projections_have_a_section_and_no_place_in_pictures(tmp_path):
    page = page_of(tmp_path, projections=("z",), dataset="digits")
    section = page[page.index("## Projections") : page.index("## Runs")]
    assert "| simclr · z | " in section and "| simclr |" not in section
    assert "| simclr | " in page[: page.index("## Projections")] and page.count("simclr · z") == 1
    write_results(SimpleNamespace(variants={"simclr": None}), tmp_path)
    assert pandas.read_csv(tmp_path / "plots/accuracy.csv")["model"].unique().tolist() == ["simclr"]
    page, shown = tmp_path / "metrics/results.csv", "simclr · z"
    assert shown in show(page, every=True) and shown not in show(page)


def test_the_page_has_title_accuracies_and_runs_and_links_to_the_legend(root, frame):
    page, first = (root / "metrics/results.md").read_text(), tables.summary(frame).iloc[0]
    assert page.startswith("# cifar10: encoder small; 12 epochs; 1,000 training and 400 test images; seed 0, 1, 2\n")
    for line in (
        "](../docs/reading-the-table.md)",
        "| Floor | Episode bits | Concept bits | Dose λ, % | Study protocol (best test epoch) top-1 |",
        f"| simclr | 3 | {first['top1']:.2f} ± {first['top1_sd']:.2f} | ",
        "| simclr (published) | - | - | - | - | - | - | - | - | 85.15 | 99.60 |",
        "| simclr | 0, 1, 2 | cifar10 | small | 12 | 256 | - | adam 0.001, constant | 24,615,616 | 50 |",
        "| untrained | 0 | cifar10 | small | 0 | - | - | - | 24,615,616 | 50 |",
    ):
        assert page.count(line) == 1, line
    assert not re.search(r"nan|None|<NA>", page)


@pytest.mark.parametrize(("dataset", "rows"), [("cifar10", 6), ("cifar100", 0), ("digits", 0), ("images", 0)])
def test_published_rows_stand_beside_cifar10_alone(tmp_path, dataset, rows):
    page = page_of(tmp_path, dataset=dataset)
    assert page.count("(published)") == rows and ("images (folder mine)" in page) == (dataset == "images")


@pytest.mark.parametrize(
    ("settings", "probe", "study"),
    [
        ({"study": 50}, ["Probe top-1"], [f"{tables.STUDY} top-{k}" for k in (1, 5)]),
        ({"study": 5}, ["Probe top-1"], []),
        ({"study": 0, "classes": list(map(str, range(20)))}, ["Probe top-1", "Probe top-5"], []),
        ({"study": 0, "mode": "finetune"}, ["Fine-tuned top-1"], []),
    ],
)
def test_the_columns_are_those_that_tell_something(tmp_path, settings, probe, study):
    """The study's protocol is shown with its 50 epochs alone."""
    page = page_of(tmp_path, dataset="digits", **settings)
    header = [*probe, "kNN top-1", "Validation top-1", "Episode bits", "Concept bits", *study]
    assert f"\n| Model | {' | '.join(header)} |\n" in page and "±" not in page.split("\n| Model")[1]


def test_shares_of_the_labels_have_a_table_where_they_were_asked_for(tmp_path, root):
    """The mean over seeds of means and of deviations over draws."""
    runs = {"simclr_0": {"seed": 0}, "simclr_1": {"seed": 1}, "floor": {"epochs": 0}}
    for number, run in enumerate(runs.values()):
        few = {"0.01": {"top1": 30.0 + number, "sd": 2.0 + number}, "0.1": {"top1": 50.0, "sd": 1.0}}
        run |= {"few": few, "dataset": "digits"}
    frame = tables.result_rows(write_runs(tmp_path, runs))
    page, top1 = tables.markdown(frame), frame["top1"].iloc[-1]
    section = page[page.index("## Shares of the training labels") : page.index("## Runs")]
    assert "| Model | 1 % | 10 % | 100 % |" in section and "| simclr_0 | 30.50 ± 2.50 | 50.00 ± 1.00 | " in section
    assert f"| floor | 32.00 ± 4.00 | 50.00 ± 1.00 | {top1:.2f} |" in section
    on_page = [table["caption"] for table in sortable_tables(frame)]
    assert on_page == ["Results", "Shares of the training labels", "Runs"]
    assert "Shares" not in (root / "metrics/results.md").read_text()
    assert "labels" not in (root / "metrics/results.csv").read_text().splitlines()[0]


def test_binary_codes_have_a_table_of_their_own(tmp_path, root):
    page = page_of(tmp_path, code=CODE)
    probe = f"{read_json(tmp_path / 'data/scores/simclr.json')['latents']['h']['top1']:.2f}"
    assert f"| simclr | 512 | 26 | {probe} | 35.25 | 33.22 | 30.50 | 0.612 | 13 | 12.5 |" in page
    assert page.index("## Runs") < page.index("## Binary codes")
    assert "## Binary codes" not in (root / "metrics/results.md").read_text()


def test_results_are_the_same_bytes_again(root):
    before = {path: (root / path).read_bytes() for path in WRITTEN}
    write_results(SimpleNamespace(variants=dict.fromkeys(RUNS)), root)
    assert {path: (root / path).read_bytes() for path in WRITTEN} == before


def test_a_record_becomes_plain_values_and_back(root, groups):
    for record in (each for members in groups.values() for each in members):
        stored = json.loads(json.dumps(record.as_json()))
        again = Record.from_json({**stored, "code": "of a run's file"})
        assert json.loads(json.dumps(again.as_json())) == stored and again.pretraining == record.pretraining
        assert again.curve.equals(record.curve) and (again.confusion == record.confusion).all()


def test_confusions_of_replicates_are_summed_against_a_loop_and_shown_in_order(root, groups):
    slow = [[0] * len(CLASSES) for _ in CLASSES]
    for record in groups["simclr"]:
        arrays = read_arrays(root / f"data/scores/{record.variant}.npz")
        for actual, predicted in zip(arrays["labels"], arrays["h"]):
            slow[actual][predicted] += 1
    assert confusion_counts(groups["simclr"]).tolist() == slow
    frame = tables.confusion_table({"simclr": groups["simclr"]})
    counted = {(row.actual, row.predicted): row.images for row in frame.itertuples() if row.images}
    assert counted == {(CLASSES[a], CLASSES[b]): n for a, row in enumerate(slow) for b, n in enumerate(row) if n}
    frame, sums = tables.confusion_table(groups), {name: len(rows) * TEST_IMAGES for name, rows in groups.items()}
    assert frame.groupby("group")["images"].sum().to_dict() == sums
    assert frame.groupby(["group", "actual"])["percent"].sum().sub(100).abs().max() < 0.1
    order = ["supervised", "vicreg", "simclr", "dual", "untrained"]
    assert titles(charts.confusion_figure(groups)) == [*order, ""], "the last is the scale"


def test_plot_tables_have_a_row_for_every_point_and_bar(groups, frame):
    curves = tables.curves_table(groups)
    assert len(curves) == 6 * 12 + 1 and curves[curves["variant"] == "simclr_2"]["group"].eq("simclr").all()
    colors = dict.fromkeys(groups, "#000000")
    bars = tables.accuracy_table(tables.summary(frame), groups, colors)
    assert list(bars["group"].unique()) == list(ranked(groups)) and len(bars) == 5 * 3 + 3 * 2
    assert bars[bars["sd"].notna()]["group"].unique().tolist() == ["simclr"] and bars["n"].max() == 3
    floors = bars[bars["floor"].notna()]
    assert floors["measure"].unique().tolist() == ["probe top-1"] and "simclr" in floors["group"].tolist()


def test_names_are_drawn_or_spelled(tmp_path):
    assert readable(["cat", "größe", "$x$"]) == ["cat", "größe", "$x$"]
    assert readable(["\ue000a"]) == [r"\ue000a"]  # of no script: no font has it
    records = write_runs(tmp_path, {"simclr": {"classes": ["\ue000", "$\\frac"]}})
    save_figure(tmp_path / "a.png", charts.confusion_figure, replicates(records))


def test_show_has_probe_and_knn_first_and_drops_the_last_columns_where_it_is_narrow(root):
    lines = show(root / "metrics/results.csv").splitlines()
    assert lines[0].startswith("cifar10: encoder small; 12 epochs;") and lines[0].endswith("seed 0, 1, 2")
    start = lines.index("percent of test images, and bits") + 2
    end = lines.index("", start)
    assert len({len(line) for line in lines[start:end]}) == 1 and end == start + 3 + 1 + 5 + 3
    assert "(published)" in lines[end - 1] and lines[start].endswith("Study protocol")
    assert re.search(r"Probe +kNN", lines[start + 1]) and re.search(r"top-1 +top-1", lines[start + 2])
    assert lines[2].startswith("Which image") and lines[-1].startswith("More: 3 latents and projections")
    every = show(root / "metrics/results.csv", every=True).splitlines()
    assert every.index("", start) == end + 3 and every[-1] == "More: all in metrics/results.md."
    narrow = show(root / "metrics/results.csv", width=40).splitlines()
    assert max(map(len, narrow)) <= 40 and "Probe" in "".join(narrow)
    more = " ".join(narrow[narrow.index("percent of test images, and bits") :]).partition("More: ")[2]
    assert "(published)" not in "".join(narrow) and "Study protocol (best test epoch) top-1 in a wider terminal" in more


@pytest.mark.parametrize(
    ("encoding", "words"),
    [("ascii", ("dual . upper", "+-", "Dose lambda")), ("utf-8", ("dual · upper", "±", "Dose λ"))],
)
def test_show_in_a_pipe_is_plain_in_its_encoding_and_silent_when_it_closes(root, encoding, words):
    command = [sys.executable, "-c", "from lib.report.show import main; main([])"]
    more = {"PYTHONPATH": os.getcwd(), "PYTHONIOENCODING": encoding, "FORCE_COLOR": "1"}
    given = {"cwd": root, "env": {**os.environ, **more}, "stderr": subprocess.PIPE, "timeout": 60}
    ended = subprocess.run(command, stdout=subprocess.PIPE, **given)
    text = ended.stdout.decode(encoding)
    assert all(word in text for word in words) and "\x1b" not in text and (ended.returncode, ended.stderr) == (0, b"")
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(command, stdout=writer, **given)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, b"")
    ended = subprocess.run(["sh", "-c", f"exec '{sys.executable}' -m lib show >&-"], **given)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_missing_and_older_files_are_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(lambda: main([]), "results.csv does not exist", "dvc repro")
    refused(lambda: read_record("simclr", tmp_path), "simclr.json does not exist")
    write_run(tmp_path, "simclr")
    write_json(tmp_path / "data/scores/simclr.json", {"latents": {"h": {"top1": 1}}})
    refused(lambda: read_record("simclr", tmp_path), "another version ('linear'); dvc repro -f linear@simclr")
    for text in ("", "model,top1\nsimclr,50\n", "group,variant\n"):
        (tmp_path / "results.csv").write_text(text)
        refused(lambda: show(tmp_path / "results.csv"), "is damaged or of another version; dvc repro -f results")


def test_a_table_older_than_what_was_measured_is_refused(root):
    for name, measured in (("dual", {"top1": 1.0, "knn": None}), ("memory/dual", {"concept_bits": 9.99})):
        metrics = root / f"metrics/{name}.json"
        before = metrics.read_text() if metrics.is_file() else None
        write_json(metrics, measured)
        words = ("results.csv is older than", f"{name}.json; dvc repro results")
        refused(lambda: show(root / "metrics/results.csv"), *words)
        metrics.unlink()
        if before:
            metrics.write_text(before)
        assert show(root / "metrics/results.csv")
