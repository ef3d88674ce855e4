"""Images without labels in each stage: what is measured, and what says that it was left out."""

import math
from dataclasses import replace

import numpy
import pandas
import pytest
import torch
from PIL import Image

from lib.core.trainer import Pretrainer
from lib.data.folders import read_folders
from lib.data.store import assemble, save_data
from lib.evaluate.embeddings import embed_data
from lib.evaluate.linear import evaluate, write_evaluation
from lib.evaluate.memory import measure_memory, write_memory
from lib.evaluate.monitor import data_monitor, effective_rank, reciprocal_rank
from lib.evaluate.record import said
from lib.evaluate.tsne import kind_of, select
from lib.explore import explore
from lib.methods import build_method
from lib.methods.export import save_method
from lib.params.evaluation import Knn, Linear, Memory, Tsne
from lib.params.experiment import parse_experiment
from lib.params.pretraining import Augment
from lib.report.figures_tsne import draw_tsne
from lib.report.page.build import write_report
from lib.report.results import write_results
from lib.report.show import show
from lib.resolve import check_against_data
from lib.runtime.files import read_arrays, read_json, write_arrays
from tests.examples import (
    CPU,
    ROOT,
    directions,
    natural,
    pretraining,
    raw_params,
    spelled_out,
    tiny_about,
    tiny_method,
    trained,
)  # fmt: skip
from tests.faults.refusals import refused
from tests.make_archives import encoded, write_folder
from tests.project import Project, of

SIMCLR = {"method": "simclr"}
JOINT, UNTRAINED = SIMCLR | {"term": "pull"}, SIMCLR | {"epochs": 0}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


def unlabeled(tmp_path, count: int = 40, size: int = 16):
    images = (255 * natural(count, size)).byte().permute(0, 2, 3, 1).numpy()
    files = {f"{number:02}.png": encoded(Image.fromarray(image)) for number, image in enumerate(images)}
    return assemble("images", read_folders(str(write_folder(tmp_path / "photos", files)), size))


# While training


def test_the_effective_rank_at_its_ends():
    assert effective_rank(torch.eye(6)) == pytest.approx(6)
    assert effective_rank(torch.ones(9, 4)) == pytest.approx(1)
    assert effective_rank(torch.zeros(9, 4)) == 1
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(math.exp(entropy))


def test_the_other_views_rank_against_a_slow_twin():
    first, second = directions(30, 4), directions(30, 4, seed=1) + 0.5 * directions(30, 4)
    slow = []
    for row, view in enumerate(first):
        cosines = [float(view @ other / other.norm()) for other in second]
        slow.append(1 / (1 + sum(cosine > cosines[row] for cosine in cosines)))
    assert reciprocal_rank(first, second) == pytest.approx(numpy.mean(slow)) and 0.1 < numpy.mean(slow) < 0.9
    assert reciprocal_rank(first, 3 * first) == 1
    assert reciprocal_rank(torch.ones(9, 4), torch.ones(9, 4)) == pytest.approx(1 / 5), "all equal: the middle rank"


@pytest.mark.parametrize("epochs", [0, 3])
def test_a_training_without_labels_is_watched_by_what_needs_none(tmp_path, capsys, epochs):
    data, params = unlabeled(tmp_path), pretraining("simclr", epochs=epochs, monitor={"every": 2})
    training = Pretrainer(build_method(params), data, params, CPU)
    trained(training, tmp_path / "curve.csv", data_monitor(data, params, CPU))
    curve = pandas.read_csv(tmp_path / "curve.csv")
    assert [*curve][-4:] == ["embedding_std", "effective_rank", "other_view", "lr"]
    assert curve["other_view"].notna().tolist() == ([False, True, True] if epochs else [True])
    assert curve["effective_rank"].dropna().between(1, 3.01).all(), "of three validation images"
    said = "effective rank 2." in capsys.readouterr().out
    assert said == bool(epochs)
    again = data_monitor(data, params, CPU).measure(training.method)
    assert again["other_view"] == pytest.approx(curve["other_view"].iloc[-1]), "the same views after every epoch"


# After training


def test_a_rule_a_transfer_and_a_loss_that_need_labels_are_refused_before_training(tmp_path):
    data = unlabeled(tmp_path)
    sizes = {"knn__k": 200, "tsne__points": 40, "tsne__perplexity": 20.0}
    fine = raw_params(variants={"simclr": SIMCLR}, **sizes)
    check_against_data(parse_experiment(fine), data.about)
    both = {"ceiling": {"method": "supervised"}, "in_class": {"method": "simclr", "negatives": "class"}}
    experiment = parse_experiment(raw_params(variants=both, **sizes))
    experiment = replace(experiment, transfer_variants=("ceiling",))
    words = ["variants.ceiling: its loss needs labels", "variants.in_class: ", "transfer.variants needs labels"]
    refused(lambda: check_against_data(experiment, data.about), *words)


def test_linear_says_what_it_left_out(tmp_path):
    data, method = unlabeled(tmp_path, size=8), tiny_method(("upper", "lower"))
    found = evaluate(method, tiny_about(), data, Linear(), Knn(), CPU)
    assert "left out: probe, kNN and the study's protocol" in said("tiny", found.metrics)
    write_evaluation(found, data.test_labels, tmp_path / "metrics.json", tmp_path / "scores")
    record = read_json(tmp_path / "scores.json")
    assert record["left_out"] == found.metrics["left_out"] and record["classes"] == []
    assert {name: numbers["width"] for name, numbers in record["latents"].items()} == {
        "upper": 8, "lower": 8, "both": 16, "mean": 8
    }  # fmt: skip
    assert all(numbers["top1"] is None for numbers in record["projections"].values())


def test_memory_measures_episodes_alone_of_one_nameless_class(tmp_path):
    data, method = unlabeled(tmp_path, 120, 8), tiny_method()
    found = measure_memory(method, tiny_about(), data, Augment(), Memory(draws=2), CPU)
    write_memory(found, tmp_path / "metrics.json", tmp_path / "memory")
    assert "concept" not in str(found.record) and "class" not in found.record["latents"]["h"]["variance"]
    assert found.metrics["left_out"].startswith("concept bits") and found.metrics["occlusion_25"]["episode_bits"] > 0
    assert found.record["gallery"] == {"smallest": 12, "largest": 12}
    assert not [name for name in read_arrays(tmp_path / "memory.npz") if "concept" in name]


def test_every_image_is_embedded_with_its_name_and_drawn_without_a_class(tmp_path):
    data = unlabeled(tmp_path, size=8)
    arrays = embed_data(tiny_method(), data, CPU)
    write_arrays(tmp_path / "tiny.npz", arrays)
    arrays = read_arrays(tmp_path / "tiny.npz")
    assert arrays["files"].tolist() == data.files and len(arrays["h"]) == 40 and arrays["classes"].tolist() == []
    beside = select(arrays, Tsne(points=30, perplexity=5.0))[1]
    assert kind_of(beside) == "images without labels" and sorted(beside["indices"])[-1] > len(data.train_labels)
    draw_tsne(tmp_path / "h.png", numpy.eye(30)[:, :2], beside["labels"], [], "h")
    colors = Image.open(tmp_path / "h.png").convert("RGB").getcolors(1000)
    assert max(color for count, color in colors if count > 500)[2] > 0


def test_the_tables_and_pictures_leave_out_what_needs_labels(tmp_path, monkeypatch):
    data = unlabeled(tmp_path, 60)
    experiment = parse_experiment(raw_params(variants={"simclr": SIMCLR, "joint": JOINT, "untrained": UNTRAINED}))
    for name, params in experiment.variants.items():
        params = spelled_out(replace(params, epochs=min(params.epochs, 1)))
        training, about = Pretrainer(build_method(params), data, params, CPU), tiny_about()
        trained(training, tmp_path / f"plots/curves/{name}.csv", data_monitor(data, params, CPU))
        save_method(tmp_path / f"data/encoders/{name}.safetensors", training.method, params, data.about)
        found = evaluate(training.method, about, data, Linear(), Knn(), CPU)
        write_evaluation(found, data.test_labels, tmp_path / f"metrics/{name}.json", tmp_path / f"data/scores/{name}")
        memory = measure_memory(training.method, about, data, Augment(), Memory(draws=1), CPU)
        write_memory(memory, tmp_path / f"metrics/memory/{name}.json", tmp_path / f"data/memory/{name}")
        plane = {"h": numpy.eye(60)[:, :2], "labels": torch.full((60,), -1), "indices": numpy.arange(60)}
        write_arrays(tmp_path / f"data/tsne/{name}.npz", plane | {"classes": numpy.array([], str)})
        write_arrays(tmp_path / f"data/embeddings/{name}.npz", embed_data(training.method, data, CPU))
    write_results(experiment, tmp_path)
    page = (tmp_path / "metrics/results.md").read_text()
    header = page.splitlines()[4]
    assert "no labels: what needs them is left out" in page.splitlines()[0]
    assert header == "| Model | Episode bits | Dose λ, % | Effective rank | Other view's reciprocal rank, % |"
    told = show(tmp_path / "metrics/results.csv")
    assert "Effective" in told and "percent" not in told and "\n\n\n" not in told
    for name in ("accuracy", "confusion"):
        assert (tmp_path / f"plots/{name}.png").is_file() and len(pandas.read_csv(tmp_path / f"plots/{name}.csv")) == 0
    assert (tmp_path / "plots/curves.png").is_file() and (tmp_path / "plots/tsne/overview.png").is_file()
    assert "knn" in pandas.read_csv(tmp_path / "plots/curves.csv")
    monkeypatch.chdir(ROOT)  # where the page of legends is
    assert write_report(experiment, data.shown()[0].numpy(), tmp_path) == []
    report = (tmp_path / "report.html").read_text()
    assert "Each dot is one image;" in report and 'id="plane"' not in report and 'id="dose"' in report
    save_data(tmp_path / "data/images.safetensors", data)
    assert explore("joint", None, tmp_path / "explore", tmp_path) == 60


@pytest.mark.slow
def test_the_whole_pipeline_runs_on_pictures_without_labels(tmp_path):
    images = (255 * natural(120, 16)).byte().permute(0, 2, 3, 1).numpy()
    files = {f"{number:03}.png": encoded(Image.fromarray(image)) for number, image in enumerate(images)}
    photos = write_folder(tmp_path / "photos", files)
    (tmp_path / "project").mkdir()
    settings = ("dataset=images", f"images_path={photos}", "batch_size=32")
    project = Project(tmp_path / "project", ("simclr", "joint", "untrained"), *settings)
    # in parts, each with a time limit of its own
    stages = project.repro("pretrain") | project.repro("memory") | project.repro("tsne") | project.repro()
    assert stages == {"download", "resolve", "results", "report"} | of("joint") | of("simclr") | of("untrained")
    assert "up to date" in project.run("dvc", "status")
    assert "left_out" in project.run("dvc", "metrics", "show")
    said = project.run("python", "-m", "lib", "neighbors", str(photos / "007.png"), "--variant", "simclr")
    assert said.splitlines()[1].split()[1] == "007.png"
