"""The results table, its words, the plot tables and the pictures, from files of made-up runs."""

import csv
import dataclasses
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy
import pandas
import pytest
import torch
from matplotlib.lines import Line2D

from lib.params.pretraining import Augment, Optimizer
from lib.report import figures, tables
from lib.report.overview import overview_figure, read_maps
from lib.report.plot_tables import accuracy_table, confusion_counts, confusion_table, curves_table
from lib.report.records import Record, read_record
from lib.report.show import plain, show_table
from lib.report.words import explanations, standard_error
from lib.runtime.errors import UserError
from lib.runtime.files import write_arrays, write_json, write_table, write_tensors

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
TEST_IMAGES = 400
LATENTS = {"simclr": ["h"], "joint": ["h"], "dual": ["upper", "lower", "both", "mean"]}


def write_run(
    root: Path,
    variant: str,
    *,
    study: bool = True,
    seed: int = 0,
    mode: str = "probe",
    top5: float = 97.25,
    optimizer: Optimizer = Optimizer(),
    augment: Augment = Augment(),
    **pretraining,
) -> None:
    """The files that the stages before the report leave for one variant."""
    draw = numpy.random.default_rng([seed, len(variant)])
    labels = numpy.arange(TEST_IMAGES) % len(CLASSES)
    predictions, latents = {}, {}
    for number, name in enumerate(LATENTS[variant]):
        wrong = draw.random(TEST_IMAGES) < 0.3 + 0.05 * number
        predictions[name] = numpy.where(wrong, draw.integers(0, len(CLASSES), TEST_IMAGES), labels)
        top1 = round(100 * float((predictions[name] == labels).mean()), 2)
        latents[name] = {
            "top1": top1,
            "top5": top5,
            "knn": top1 - 8.5,
            "validation_probe": top1 + 1,
            "validation_knn": top1 - 8,
            "lr": 0.001,
            "weight_decay": 0.01,
            "width": 512,
        }
    write_json(
        root / f"data/scores/{variant}.json",
        {
            "variant": variant,
            "method": variant,
            "main": LATENTS[variant][0],
            "seed": seed,
            "dataset": "cifar10",
            "classes": CLASSES,
            "images": {"fitting": 900, "validation": 100, "train": 1000, "test": TEST_IMAGES},
            "linear": {"mode": mode, "epochs": 50, "batch_size": 256, "finetune_lr": 1e-4, "study_epochs": 2},
            "knn": {"k": 20, "temperature": 0.1},
            "latents": latents,
            "grid": {"lr": [0.001, 0.01], "weight_decay": [0.001, 0.01, 0.1]},
            "protocol": {"linear": "frozen features", "knn": "cosine, k 20, temperature 0.1", "study": "as it was"},
            "study": {
                "latent": LATENTS[variant][0],
                "top1": 71.5,
                "top5": 98.0,
                "best_epoch": 2,
                "curve": [
                    {"epoch": 1, "loss": 1.2, "top1": 70.0, "top5": 98.0},
                    {"epoch": 2, "loss": 1.1, "top1": 71.5, "top5": 97.9},
                ],
            }
            if study
            else None,
        },
    )
    write_arrays(root / f"data/scores/{variant}.npz", {"labels": labels, **predictions})
    write_tensors(
        root / f"data/encoders/{variant}.safetensors",
        {"weight": torch.zeros(1)},
        {
            "pretraining": {
                "encoder": "small",
                "epochs": 12,
                "batch_size": 256,
                "seed": seed,
                "gamma": None if variant == "simclr" else 0.01,
                "method": variant,
                "options": {"temperature": 0.5},
                "optimizer": asdict(optimizer),
                "augment": asdict(augment),
                **pretraining,
            },
            "parameters": {"encoder": 1_361_000, "total": 24_615_616},
            "data": {"dataset": "cifar10"},
        },
    )
    epochs = numpy.arange(1, 13)
    curve = {"epoch": epochs, "loss": 5 + 1 / epochs + len(variant) / 50, "nt_xent": 5 + 1 / epochs}
    if variant != "simclr":
        curve["distance"] = 9 + 1 / epochs
    curve |= {
        "knn": [value if epoch % 3 == 0 else None for epoch, value in zip(epochs, 40 + 2.0 * epochs)],
        "lr": 0.001,
        "images_per_second": 700.0,
        "seconds": 70.0 + epochs,
        "memory_gb": 0.5 + epochs / 8,
        "device": "cpu x1, 2 threads, bf16",
    }
    write_table(root / f"plots/curves/{variant}.csv", pandas.DataFrame(curve))
    shown = {"labels": labels[:100], "indices": numpy.arange(100), "classes": numpy.array(CLASSES)}
    planes = {name: draw.normal(size=(100, 2)) + 3 * labels[:100, None] for name in LATENTS[variant][:2]}
    write_arrays(root / f"data/tsne/{variant}.npz", {**planes, **shown})


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for variant in LATENTS:
        write_run(folder, variant)
    return folder


@pytest.fixture(scope="module")
def records(root) -> list[Record]:
    return [read_record(variant, root) for variant in LATENTS]


def test_rows_are_ours_then_published_then_further_latents(records):
    frame = tables.result_rows(records)
    assert list(frame["model"]) == [
        "simclr",
        "joint",
        "dual · upper",
        "simclr (published)",
        "joint (published)",
        "dual (published)",
        "dual · lower",
        "dual · both",
        "dual · mean",
    ]
    published = frame[frame["model"].str.endswith("(published)")]
    assert published[["study_top1", "study_top5"]].values.tolist() == [[85.15, 99.60], [83.80, 99.44], [82.84, 99.45]]
    assert published[["top1", "top5", "knn", "seconds_per_epoch", "parameters"]].isna().all(axis=None)
    first = frame.iloc[0]
    assert (first["top1"], first["study_top1"]) == (records[0].main.top1, 71.5)
    assert (first["seconds_per_epoch"], first["parameters"], first["device"]) == (
        76.5,
        24_615_616,
        "cpu x1, 2 threads, bf16",
    )
    assert pandas.isna(first["gamma"]) and frame.iloc[1]["gamma"] == 0.01
    assert frame.iloc[6:]["study_top1"].isna().all()


def test_markdown_is_well_formed(records):
    page = tables.markdown(records)
    blocks = [block.splitlines() for block in page.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 2
    for block in blocks:
        assert len({line.count("|") for line in block}) == 1
    assert page.count("(published)") == 6 and page.count("| adam 0.001, constant |") == 6
    assert "| simclr | 71.50 | 98.00 | " in page
    assert "| simclr (published) | 85.15 | 99.60 | - | - | - | - |" in page
    assert "| 24,615,616 | 76.5 | 2 | cpu x1, 2 threads, bf16 |" in page
    assert "| - | adam 0.001, constant | 24,615,616" in page and "| 0.01 | adam 0.001, constant | 24,615,616" in page
    assert all(word not in page for word in ("nan |", "None", "<NA>"))


def test_a_file_from_before_a_setting_existed_is_read(records):
    params = records[0].pretraining
    old = {**params, "optimizer": {key: value for key, value in params["optimizer"].items() if key != "trust"}}
    assert tables.markdown([dataclasses.replace(records[0], pretraining=old)]) == tables.markdown(records[:1])


def test_rows_that_are_no_self_supervised_training_are_named(records):
    untrained = dataclasses.replace(records[0], variant="random", pretraining={**records[0].pretraining, "epochs": 0})
    taught = dataclasses.replace(records[0], variant="taught", supervised=True)
    text = "\n".join(explanations([*records, untrained, taught]))
    assert "**Trained with labels**: taught, all others without any" in text
    assert "**Not trained**: random. With 0 epochs" in text
    assert "rained" not in "".join(line for line in explanations(records) if line.startswith(("**Trained", "**Not")))


def test_the_confusion_of_some_variants_leaves_no_empty_panel(records):
    four = [dataclasses.replace(records[0], variant=f"v{number}") for number in range(4)]
    figure = figures.confusion_figure(four)
    assert [axes.get_title("left") for axes in figure.axes] == ["v0", "v1", "v2", "v3", ""], "the last is the scale"
    assert [axes.get_ylabel() for axes in figure.axes] == ["actual", "", "", "actual", "% of the actual class"]


def test_many_curves_have_their_legend_beside_them_and_losses_of_unlike_size_a_logarithmic_axis(records):
    many = [
        dataclasses.replace(
            records[0],
            variant=f"v{number}",
            curve=records[0].curve.assign(loss=records[0].curve["loss"] * 10.0 ** (number % 3)),
        )
        for number in range(10)
    ]
    figure, few = figures.curves_figure(many), figures.curves_figure(records)
    assert figure.axes[0].get_yscale() == "log" and few.axes[0].get_yscale() == "linear"
    assert figure.axes[0].yaxis.get_major_formatter()(100) == "100"
    assert figure.axes[0].get_legend() is None and few.axes[0].get_legend() is not None
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [f"v{number}" for number in range(10)]


def test_standard_error_is_the_binomial_one():
    assert standard_error(85.0, 10_000) == pytest.approx(0.357, abs=5e-4)
    draws = numpy.random.default_rng(0).binomial(TEST_IMAGES, 0.7, size=200_000) / TEST_IMAGES * 100
    assert standard_error(70.0, TEST_IMAGES) == pytest.approx(draws.std(), rel=0.01)


def test_words_hold_this_runs_numbers(records):
    text = "\n".join(explanations(records))
    top1 = records[0].main.top1
    assert f"{standard_error(top1, TEST_IMAGES):.2f} at {top1:.2f} (simclr)" in text
    assert "`both` is their concatenation" in text
    assert "cannot be attributed to the loss" in text
    assert (
        "This run differs in encoder small instead of resnet50, epochs 12 instead of 100, linear.study_epochs 2 "
        "instead of 50, so the two" in text
    )
    assert "the study also picked its pretraining checkpoint by the best kNN on the test images" in text
    assert "simclr 0.001, 0.01; joint 0.001, 0.01; dual · upper 0.001, 0.01; " in text
    assert "may lie beyond it: rate of all." in text
    assert "k 20, temperature 0.1" in text


def test_without_the_studys_protocol_the_columns_are_dashes(tmp_path):
    write_run(tmp_path, "simclr", study=False)
    record = read_record("simclr", tmp_path)
    assert "| simclr | - | - | " in tables.markdown([record])
    assert "linear.study_epochs: 0" in explanations([record])[0]
    assert set(accuracy_table([record])["measure"]) == {"probe top-1", "kNN top-1"}


def test_confusion_against_a_loop(records):
    for record in records:
        slow = [[0] * len(CLASSES) for _ in CLASSES]
        for actual, predicted in zip(record.labels, record.predictions):
            slow[actual][predicted] += 1
        assert confusion_counts(record).tolist() == slow
        accuracy = 100 * confusion_counts(record).trace() / TEST_IMAGES
        assert accuracy == pytest.approx(record.main.top1, abs=0.005)


def test_confusion_table_sums_to_the_images_and_names_each_class(records):
    frame = confusion_table(records)
    assert frame.groupby("variant")["images"].sum().to_dict() == dict.fromkeys(LATENTS, TEST_IMAGES)
    for _, rows in frame.groupby("variant"):
        assert set(rows["actual"]) == set(rows["predicted"]) == set(CLASSES)
    assert (frame["images"] > 0)[frame["actual"] != frame["predicted"]].all()
    assert frame.groupby(["variant", "actual"])["percent"].sum().sub(100).abs().max() < 0.1


def test_curves_table_keeps_every_row_and_leaves_gaps(records):
    frame = curves_table(records)
    assert frame.columns[0] == "variant" and len(frame) == 36
    assert frame[frame["variant"] == "simclr"]["distance"].isna().all()
    assert frame["knn"].notna().sum() == 12


def test_accuracy_table_has_one_row_per_bar(records):
    frame = accuracy_table(records)
    assert len(frame) == 3 * 3 + 3 * 2
    value = frame[(frame["model"] == "dual · lower") & (frame["measure"] == "kNN top-1")]["value"].item()
    assert value == records[2].latents[1].knn


@pytest.mark.parametrize("draw", [figures.curves_figure, figures.accuracy_figure, figures.confusion_figure])
def test_pictures_are_drawn_and_repeat_byte_by_byte(records, tmp_path, draw):
    figures.save_figure(tmp_path / "a.png", draw, records)
    figures.save_figure(tmp_path / "b.png", draw, records)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_overview_has_a_panel_for_each_latent(root):
    figure = overview_figure({variant: read_maps(variant, root) for variant in LATENTS})
    titles = [axes.get_title("left") for axes in figure.axes if axes.get_visible()]
    assert titles == ["simclr · h", "joint · h", "dual · upper", "dual · lower"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == CLASSES


def test_show_table_in_a_pipe_is_plain(records, tmp_path, capsys):
    write_table(tmp_path / "results.csv", tables.result_rows(records))
    show_table(tmp_path / "results.csv")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10 and len({len(line) for line in lines}) == 1
    assert lines[1].split()[:3] == ["simclr", "71.50", "98.00"]
    with open(tmp_path / "results.csv", newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 9


def test_plain_aligns_columns():
    assert plain([["a", "bb"], ["ccc", "1"]]) == "a    bb\nccc   1"


def test_missing_files_are_one_line(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_record("simclr", tmp_path)
    with pytest.raises(UserError, match="results.csv does not exist"):
        show_table(tmp_path / "results.csv")
    write_run(tmp_path, "simclr")
    write_json(tmp_path / "data/scores/simclr.json", {"latents": {"h": {"top1": 1}}})
    with pytest.raises(UserError, match=r"lack 'top5'.*dvc repro -f linear@simclr"):
        read_record("simclr", tmp_path)


@pytest.mark.parametrize("module", ["stages.results", "stages.overview"])
def test_help_of_a_stage_imports_nothing_heavy(module):
    code = (
        f"import sys, runpy; sys.argv = ['x', '--help']\ntry: runpy.run_module({module!r}, run_name='__main__')\n"
        "except SystemExit: pass\nprint(sorted({'torch', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"


def differences(tmp_path, variant="joint", **settings) -> str:
    """What the words name as different from the study, for a run that is else the study's."""
    study = {"encoder": "resnet50", "epochs": 100}
    write_run(tmp_path, variant, study=False, **{**study, **settings})
    sentence = explanations([read_record(variant, tmp_path)])[-1].partition(" This run differs in ")[2]
    return sentence.partition(", so the two")[0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, ""),
        (
            {"optimizer": Optimizer(schedule="cosine", warmup_epochs=1.0)},
            "optimizer.schedule cosine instead of constant, optimizer.warmup_epochs 1 instead of 0",
        ),
        (
            {"optimizer": Optimizer("sgd", 0.1, 0.0)},
            "optimizer.name sgd instead of adam, optimizer.lr 0.1 instead of 0.001, "
            "optimizer.weight_decay 0 instead of 1e-06",
        ),
        ({"augment": Augment(flip=0.0)}, "augment.flip 0 instead of 0.5"),
        ({"gamma": 0.1}, "gamma 0.1 instead of 0.01"),
        ({"batch_size": 64}, "batch_size 64 instead of 256"),
        ({"options": {"temperature": 0.1}}, "variants.joint.temperature 0.1 instead of 0.5"),
        ({"options": {"projector_out": 64, "temperature": 0.5}}, "variants.joint.projector_out 64 instead of 128"),
        ({"options": {"temperature": 0.1}, "method": "other"}, ""),
    ],
)
def test_what_differs_from_the_study_is_named_with_its_values(tmp_path, settings, words):
    assert differences(tmp_path, **settings) == words


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (Optimizer(schedule="cosine", warmup_epochs=1.0), "adam 0.001, cosine, 1 warm-up epoch"),
        (Optimizer("lars", 1.2, warmup_epochs=10.0), "lars 1.2, constant, 10 warm-up epochs"),
    ],
)
def test_optimizer_in_words(optimizer, words):
    assert tables.optimizer_words(optimizer) == words


@pytest.mark.parametrize(("top5", "said"), [(95.0, False), (95.5, True)])
def test_top5_is_called_nearly_always_right_when_it_is(tmp_path, top5, said):
    write_run(tmp_path, "dual", top5=top5)
    text = "\n".join(explanations([read_record("dual", tmp_path)]))
    assert ("nearly always right here, 95.50 at the least" in text) == said == ("nearly always" in text)


def test_a_fine_tuned_run_is_called_so(tmp_path, capsys):
    write_run(tmp_path, "simclr", mode="finetune")
    records = [read_record("simclr", tmp_path)]
    page = tables.markdown(records)
    assert "| Fine-tuned top-1 | Fine-tuned top-5 | Frozen probe, validation top-1 |" in page
    assert "it does not measure the fine-tuned network" in page
    assert "fine-tuned top-1" in set(accuracy_table(records)["measure"])
    assert figures.accuracy_figure(records).legends[0].get_texts()[1].get_text() == "fine-tuned top-1"
    write_table(tmp_path / "results.csv", tables.result_rows(records))
    show_table(tmp_path / "results.csv")
    assert "fine-tuned top-1" in capsys.readouterr().out


def test_numbers_of_the_table():
    cells = [tables.cell("seconds_per_epoch", value) for value in (0.0123, 76.5, 99.97, 999.7, 1234.5)]
    assert cells == ["0.0123", "76.5", "100", "1000", "1234"]


def test_lines_differ_in_marker_and_dash_and_the_axis_names_the_loss(records):
    panel = figures.curves_figure(records).axes[0]
    for look in (Line2D.get_color, Line2D.get_marker, lambda line: str(line._unscaled_dash_pattern)):
        assert len({look(line) for line in panel.lines}) == 3
    assert panel.get_ylabel() == "total loss (with its gamma term)"
    assert figures.curves_figure(records[:1]).axes[0].get_ylabel() == "total loss"


def test_overview_marks_what_collapsed_and_what_has_no_legend(root):
    maps = {"joint": read_maps("joint", root), "dual": read_maps("dual", root)}
    maps["dual"]["lower"] = numpy.zeros((100, 2))
    for arrays in maps.values():
        arrays["classes"] = numpy.array([f"class {number}$" for number in range(21)])
    figure = overview_figure(maps)
    titles = [axes.get_title("left") for axes in figure.axes if axes.get_visible()]
    assert titles == ["joint · h", "dual · upper", "dual · lower"]
    said = [axes.texts[0].get_text() for axes in figure.axes if axes.get_visible()]
    assert said == ["", "", "collapsed: all rows equal"]
    assert not figure.legends and figure.get_suptitle() == "21 classes, no legend"
