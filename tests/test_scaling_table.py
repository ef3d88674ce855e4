"""The planning table: its arithmetic, and that docs/scaling.md holds what the code computes."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from lib.encoders import build_encoder
from lib.encoders.resnet import cifar_stem
from lib.errors import UserError
from lib.files import write_json
from lib.report import scaling
from lib.report.record import RECORDS
from lib.report.scaling import BESIDE, PAGE, PUBLISHED, TABLE, Speed, markers
from tests.examples import ROOT


def step(encoder: str, batch: int, *runs: dict) -> dict:
    return {"section": "step", "settings": {"encoder": encoder, "batch": batch},
            "runs": {"ours.step": list(runs), "peer.step": []}}


def run(seconds: float, memory: float = 100.0) -> dict:
    return {"seconds": seconds, "memory": memory, "precision": "bf16"}


@pytest.fixture
def bench() -> dict:
    """As ``make bench`` writes it, with one arm that failed."""
    return {"quick": False, "date": "2026-01-31", "machine": {"processor": "Example", "threads": 2, "load": 0.1},
            "sections": ["parts"], "before": [{"date": "2026-01-30", "load": 0.2, "sections": ["data", "step"]}],
            "rows": [{**step("small", 256), "section": "data", "runs": {"ours.data": [run(1.0)]}},
                     {**step("small", 256, run(9.0)), "section": "parts"},
                     step("small", 256, run(2.0), run(1.0, 300.0), run(4.0)),
                     step("resnet18", 128, {"error": "failed with status 1"})]}


def test_a_benched_speed_is_the_median_step_of_this_code(bench, tmp_path):
    write_json(tmp_path / "bench.json", bench)
    note = "batch 256, peak memory of the whole process 314.6 MB"
    speeds = [Speed("small", "cpu x1, 2 threads, bf16", 128.0, "measured", note)]
    assert scaling.measured_speeds(tmp_path / "bench.json") == (speeds, "make bench, 2026-01-30, Example, load 0.2")


@pytest.mark.parametrize("change", [{"quick": True}, {"rows": []}])
def test_a_bench_without_a_usable_step_is_refused(bench, change, tmp_path):
    write_json(tmp_path / "bench.json", {**bench, **change})
    with pytest.raises(UserError, match="holds no step of a run that is not quick; make one with"):
        scaling.measured_speeds(tmp_path / "bench.json")


def test_the_bench_comes_before_the_newest_record(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="neither bench/results.json nor a record in docs/results"):
        scaling.default_source()
    for name in ("2026-01-31-new", "2025-12-31-old"):
        (tmp_path / RECORDS / name).mkdir(parents=True)
        (tmp_path / RECORDS / name / "curves.csv").write_text('images_per_second,device\n10.0,"cpu x1"\n50,"cpu x1"\n')
        (tmp_path / RECORDS / name / "params.yaml").write_text("encoder: small\n")
    assert scaling.default_source() == RECORDS / "2026-01-31-new/curves.csv"
    assert scaling.measured_speeds(scaling.default_source())[0] == [
        Speed("small", "cpu x1", 30.0, "measured", "median epoch")]
    write_json(tmp_path / "bench/results.json", {})
    assert scaling.default_source() == Path("bench/results.json")


def test_published_speeds_are_images_over_seconds():
    assert [round(speed.images_per_second) for speed in PUBLISHED] == [4202, 1355]


def test_work_and_activations_of_one_convolution(monkeypatch):
    monkeypatch.setattr(scaling, "build_encoder", lambda name: nn.Sequential(cifar_stem(3, 1.0)))
    multiplications = 64 * 32 * 32 * 27
    assert scaling.work("stem", 32) == 2 * 2 * multiplications  # forward and the weights' gradient; images have none
    assert scaling.activations("stem", 32) == 3 * 32 * 32 * 2  # its input in bf16
    assert scaling.working_memory("stem", 32) == 256 * 2 * 3 * 32 * 32 * 2 + 16 * 64 * 27
    assert Speed("stem", "cpu", 8.0, "measured", "").at(64) == 2.0


def test_activations_are_those_of_a_forward_pass_that_computes():
    def kept(views: int) -> int:
        storages = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept):
            network(torch.zeros(views, 3, 32, 32))
        return sum(storage.nbytes() for storage in storages.values())

    network = build_encoder("small").train()
    assert scaling.activations("small", 32) == (kept(4) - kept(2)) // 2


def test_counting_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    scaling.activations.cache_clear()
    scaling.activations("small", 32)
    assert torch.equal(before, torch.get_rng_state())


def test_a_row_holds_its_arithmetic(bench, tmp_path):
    write_json(tmp_path / "bench.json", bench)
    lines = scaling.document(tmp_path / "bench.json", price=3.0).splitlines()
    row = next(line for line in lines if "1,281,167" in line and "resnet50 | A100" in line)
    rate = 50_000 / 36.9 / 4
    hours = 1_281_167 / rate / 3600
    assert f"| A100 | {rate:,.0f} (computed) | {hours:.1f} h | 15.7 GB |" in row
    assert row.endswith(f"| 100 | {100 * hours / 24:.1f} days | {300 * hours:,.2f} USD |")
    own = next(line for line in lines if "50,000" in line and "small" in line)
    assert "| 128 (measured) | 7 min | 153.6 MB |" in own and own.endswith("| - |")
    assert any("assumed 3 USD" in line for line in lines)


def test_steps_recorded_on_a_gpu_have_rows_and_a_price(bench, tmp_path, monkeypatch):
    folder = tmp_path / RECORDS / "2026-01-31-steps"
    folder.mkdir(parents=True)
    (folder / "steps.csv").write_text("encoder,batch,images_per_second,memory_gib,device\n"
                                      "resnet18,512,5000,2.8,GPU\nresnet18,128,900,1.0,GPU\n")
    monkeypatch.chdir(tmp_path)
    write_json(tmp_path / "bench.json", bench)
    lines = scaling.document(Path("bench.json"), price=3.6).splitlines()
    row = next(line for line in lines if "50,000" in line and "resnet18 | GPU" in line)
    assert "| 5,000 (measured) | 10 s |" in row and row.endswith("| 100 | 17 min | 1.00 USD |")  # of the larger batch
    assert any("resnet18 5,000 images/s (batch 512, 2.8 GiB of GPU memory); one run each" in line for line in lines)


def test_the_page_is_rewritten_between_its_markers(tmp_path):
    page = tmp_path / "page.md"
    (one, two), (three, four) = markers(BESIDE), markers(TABLE)
    for text in ("nothing", f"{one}\nhalf", f"{three}\nof another part\n{four}"):
        page.write_text(text)
        with pytest.raises(UserError, match="lacks the markers of its side by side; put"):
            scaling.write_page(page, {TABLE: "new\n", BESIDE: "new\n"} if three in text else {BESIDE: "new\n"})
        assert page.read_text() == text
    page.write_text(f"before\n{one}\nold\n{two}\nbetween\n{three}\nold\n{four}\nafter\n")
    scaling.write_page(page, {BESIDE: "new\n", TABLE: "newer\n"})
    assert page.read_text() == f"before\n{one}\nnew\n{two}\nbetween\n{three}\nnewer\n{four}\nafter\n"


def test_what_variants_side_by_side_gain(bench, tmp_path):
    write_json(tmp_path / "bench.json", bench)
    assert scaling.side_by_side_gain(tmp_path / "bench.json") == "Not measured.\n"
    assert scaling.side_by_side_gain(tmp_path / "none.json") == "Not measured.\n"
    bench["before"][0]["sections"] += ["pipeline"]
    bench["rows"] += [
        {"section": "pipeline", "name": "demo whole", "settings": {},
         "runs": {"pipeline.side_by_side": [{"seconds": 100.4}], "pipeline.in_turn": [{"seconds": 150.0}]}},
        {**step("resnet18", 128), "section": "parts",
         "runs": {"ours.step": [run(3.0), run(9.0), run(8.0)],
                  "parts.side_by_side": [run(2.5), {"error": "status 1"}, run(4.0)]}}]
    write_json(tmp_path / "bench.json", bench)
    lines = scaling.side_by_side_gain(tmp_path / "bench.json").splitlines()
    assert lines[2:] == [
        "- demo whole: 100 s side by side, 150 s one stage after the other (2026-01-30, 1 repetition)",
        "- resnet18: 2 trainings, one for each processor, together do 1.60 times the steps of one training with all "
        "processors (2026-01-31, 2 repetitions)"]


def test_the_page_holds_what_the_code_computes(monkeypatch):
    """From the record that it names: a newer record makes it older, not wrong."""
    monkeypatch.chdir(ROOT)
    text = PAGE.read_text()
    path = Path(re.search(r"From \[([^]]+)\]", text)[1])
    for part, written in ((BESIDE, scaling.side_by_side_gain(scaling.BENCH)), (TABLE, scaling.document(path))):
        begin, end = markers(part)
        assert f"{begin}\n{written}{end}" in text, f"python -m lib.report.scaling --speeds {path}"
