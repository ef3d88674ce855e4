"""What each method does with embeddings and latents (docs/methods.md), and a suite over all of lib/methods."""

import dataclasses
from pathlib import Path

import pytest
import torch
from lib.losses.ntxent import nt_xent
from torch.nn.functional import normalize

from lib.methods import build_method, method_class, try_method
from lib.methods.base import GIVEN
from lib.methods.export import load_method, save_method
from lib.runtime.errors import UserError
from tests.examples import ROOT, params_file, pretraining

METHODS = sorted({path.stem for path in (ROOT / "lib/methods").glob("[a-z]*.py")} - {"base", "export"})
VARIANTS = list(params_file()["variants"])


def built(variant: str, **changes):
    torch.manual_seed(0)
    return build_method(pretraining(variant, **changes))


def embedded(method, variant: str, count: int = 8):
    """What ``loss`` reads, of random views."""
    size = pretraining(variant).augment.crop_pixels or 16
    stream = torch.Generator().manual_seed(3)
    given = {"indices": torch.arange(count), "labels": torch.randint(0, 2, (count,), generator=stream)}
    method.setup(torch.tensor([0.4] * 3), torch.tensor([0.2] * 3), 64, 2)
    return {**method.embed(two_views(count, size)[: method.views]), **{name: given[name] for name in method.needs}}


def two_views(count: int = 8, size: int = 16):
    stream = torch.Generator().manual_seed(1)
    return [torch.randn(count, 3, size, size, generator=stream) for _ in range(2)]


def test_every_method_has_a_variant():
    assert {block["method"] for block in params_file()["variants"].values()} == set(METHODS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_learning_parameter_of_a_method_gets_a_gradient(variant):
    """In the first half of a training or in the second, where layers learn one after the other."""
    method = built(variant)
    for _ in range(2):
        total, parts = method.loss(embedded(method, variant))
        total.backward()
        assert total.ndim == 0 and total.isfinite()
        assert all(part.ndim == 0 for part in parts.values()) and parts
        method.after_step(1, 4)
    without = [name for name, weight in method.named_parameters() if weight.requires_grad and weight.grad is None]
    assert without == []
    kept = [name for name, weight in method.named_parameters() if not weight.requires_grad and weight.grad is not None]
    assert kept == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_latents_and_projections_are_one_row_per_image(variant):
    method = built(variant).eval()
    images = two_views(5)[0]
    for named in (method.latents(images), method.project(method.latents(images))):
        for rows in named.values():
            assert len(rows) == 5 and rows.ndim == 2 and rows.dtype == torch.float32 and rows.isfinite().all()


@pytest.mark.parametrize("variant", ["simclr", "joint", "dual"])
def test_the_studys_latents_are_as_wide_as_the_encoder_and_their_projections_unit_rows(variant):
    method = built(variant).eval()
    latents = method.latents(two_views(5)[0])
    assert all(rows.shape == (5, method.encoder.width) for rows in latents.values())
    for rows in method.project(latents).values():
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(5))


@pytest.mark.parametrize("variant", VARIANTS)
def test_labels_are_for_supervised_methods_alone(variant):
    needs = method_class(params_file()["variants"][variant]["method"]).needs
    assert set(needs) <= set(GIVEN)
    assert ("labels" in needs) == ("supervised" in variant)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_method_file_rebuilds_the_same_method(variant, tmp_path):
    method = built(variant).eval()
    params = pretraining(variant)
    save_method(tmp_path / "m.safetensors", method, params, {"checksum": "c"})
    loaded, about = load_method(tmp_path / "m.safetensors")
    images = two_views(3)[0]
    with torch.no_grad():
        for name, rows in method.latents(images).items():
            assert torch.equal(rows, loaded.latents(images)[name])
    assert not loaded.training and not any(weight.requires_grad for weight in loaded.parameters())
    assert about["pretraining"] == dataclasses.asdict(params)
    assert about["parameters"]["total"] == sum(weight.numel() for weight in method.parameters())


def test_joint_with_gamma_zero_is_simclr_bit_for_bit():
    simclr, joint = built("simclr"), built("joint", gamma=0.0)
    values = []
    for method in (simclr, joint):
        total, _ = method.loss(method.embed(two_views()))
        total.backward()
        values.append((total, [weight.grad for weight in method.parameters()]))
    assert torch.equal(values[0][0], values[1][0])
    assert all(torch.equal(a, b) for a, b in zip(values[0][1], values[1][1]))


def test_the_losses_are_the_sums_of_the_method_file():
    stream = torch.Generator().manual_seed(2)
    z = [normalize(torch.randn(6, 128, generator=stream), dim=1) for _ in range(4)]
    contrast = nt_xent(z[0], z[1], 0.5)
    joint, _ = built("joint", gamma=0.3).loss({"z_a": z[0], "z_b": z[1]})
    names = ("z_upper_a", "z_upper_b", "z_lower_a", "z_lower_b")
    dual, _ = built("dual", gamma=0.3).loss(dict(zip(names, z)))
    assert joint.item() == pytest.approx((contrast + 0.3 * (z[0] - z[1]).norm()).item(), abs=1e-6)
    assert dual.item() == pytest.approx((contrast + 0.3 * (z[2] - z[3]).norm()).item(), abs=1e-6)


def test_the_mean_of_duals_latents_is_global_average_pooling():
    method = built("dual").eval()
    images = two_views(4, 32)[0]
    with torch.no_grad():
        latents = method.latents(images)
        pooled = method.encoder(images).mean((2, 3))
    torch.testing.assert_close((latents["upper"] + latents["lower"]) / 2, pooled, atol=1e-6, rtol=1e-5)


def test_dual_sees_a_changed_lower_half_in_the_upper_latent_only_through_receptive_fields():
    method = built("dual").eval()
    image = two_views(1, 32)[0]
    changed = image.clone()
    changed[:, :, 24:] += 2.0
    with torch.no_grad():
        before, after = method.latents(image), method.latents(changed)
    moved = {name: (after[name] - before[name]).norm().item() for name in before}
    assert moved["lower"] > 3 * moved["upper"]


def test_dual_with_gamma_zero_leaves_the_second_head_alone():
    method = built("dual", gamma=0.0)
    total, _ = method.loss(method.embed(two_views()))
    total.backward()
    for weight in method.projector_lower.parameters():
        assert weight.grad is None or weight.grad.abs().max() == 0


def test_duals_second_projection_collapses_and_its_first_does_not():
    method = built("dual", gamma=1.0)
    learning = torch.optim.Adam(method.parameters(), lr=1e-2)
    stream = torch.Generator().manual_seed(3)
    base = torch.randn(12, 3, 16, 16, generator=stream)
    for _ in range(40):
        views = [base + 0.5 * torch.randn(base.shape, generator=stream) for _ in range(2)]
        total, _ = method.loss(method.embed(views))
        learning.zero_grad()
        total.backward()
        learning.step()
    with torch.no_grad():
        spread = {name: z.std(0).mean().item() for name, z in method.project(method.latents(base)).items()}
    assert spread["z_lower"] < 0.5 * spread["z_upper"], spread


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"loss": "ntxent", "term": "ntxent", "part": "methods/base", "number": "gamma"}, "watch names the losses"),
        ({"loss": "ntxent", "term": "view_distance", "part": "methods/base", "number": "seed"}, "watch.number"),
        ({"loss": "ntxent", "term": "view_distance", "part": "methods/export", "number": "gamma"}, "watch.part"),
    ],
)
def test_a_watch_block_that_does_not_fit_the_code_is_refused(change, word):
    raw = params_file()
    raw["variants"]["joint"]["watch"] = change
    from lib.params.pretraining import pretraining_params

    with pytest.raises(UserError, match=word):
        build_method(pretraining_params(raw, "joint"))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_names_the_losses_that_it_imports(name):
    from tests.import_closure import imported_files

    kind = method_class(name)
    files = imported_files(Path(f"lib/methods/{name}.py")) | imported_files(Path(f"lib/{kind.part}.py"))
    imported = {path.stem for path in files if path.parent.name == "losses"}
    assert imported - {"__init__"} == set(kind.losses)


@pytest.mark.parametrize(
    ("variant", "given", "words"),
    [
        ("supervised", (64, 11), None),
        (
            "moco",
            (15, 2),
            "variants.moco.queue is 32, keys of 16 images; allowed: keys of at most the number of training",
        ),
        ("cmc_bank", (64, 2), None),
    ],
)
def test_options_are_held_against_the_data_before_any_training(variant, given, words):
    if words:
        with pytest.raises(UserError, match=words):
            try_method(pretraining(variant), *given)
    else:
        try_method(pretraining(variant), *given)


@pytest.mark.parametrize("variant", ["dual", "cpc"])
def test_squares_that_a_network_cannot_take_are_refused_by_name(variant):
    with pytest.raises(UserError, match=f"augment.crop_pixels of {variant} is 8, which its network cannot take"):
        try_method(pretraining(variant, augment__crop_pixels=8))


def test_dual_refuses_a_map_without_two_halves():
    with pytest.raises(UserError, match="image_size is 8, which gives the encoder's final map 1 row"):
        try_method(pretraining("dual", image_size=8))
    try_method(pretraining("dual", image_size=16))
