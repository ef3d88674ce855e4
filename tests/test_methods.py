"""SimCLR and the study's two models on top of it (docs/methods.md, 1 to 3), and what is refused of any method."""

import pytest
import torch

from lib.methods import method_class, try_method, typed_options
from lib.methods.simclr import nearest_images, nt_xent, nt_xent_among
from tests.examples import Training, built, directions, embedded, normal, pretraining, views
from tests.faults.refusals import refused

FAMILY = ("simclr", "joint", "push", "dual")


def test_the_losses_are_the_sums_of_the_file():
    z = directions(4, 6, 128)
    one, two = {"z_a": z[0], "z_b": z[1]}, dict(zip(("z_upper_a", "z_upper_b", "z_lower_a", "z_lower_b"), z))
    contrast, near, far = nt_xent(z[0], z[1], 0.5), (z[0] - z[1]).norm(), (z[2] - z[3]).norm()
    among = nt_xent_among(z[0], z[1], nearest_images(z[0], z[1], 4), 0.5)
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    in_class = nt_xent_among(z[0], z[1], labels[:, None] == labels, 0.5)
    shared = {"nt_xent": contrast}
    expected = {
        "simclr": (one, contrast, shared),
        "joint": (one, contrast + 0.3 * near, shared | {"distance": near}),
        "push": (one, contrast - 0.3 * near.log(), shared | {"distance": near}),
        "dual": (two, contrast + 0.3 * far, shared | {"distance": far}),
        "lookalikes": (one, 0.7 * contrast + 0.3 * among, shared | {"lookalikes": among, "distance": near}),
        "in_class": (one | {"labels": labels}, in_class, shared | {"nt_xent_in_class": in_class}),
    }
    for variant, (embeddings, *losses) in expected.items():
        total, parts = built(variant, gamma=0.3).loss(embeddings)
        assert parts.pop("contrastive_accuracy").ndim == 0
        floor = parts.pop("nt_xent_floor", None)  # of all images as negatives alone
        assert (floor is None) == (variant == "in_class") and (floor is None or floor < contrast)
        torch.testing.assert_close((total, parts), tuple(losses))


@pytest.mark.parametrize(("variant", "gamma", "value"), [("joint", 0.01, 0.226274), ("push", 0.2, -0.623832)])
def test_the_terms_of_the_study_where_256_pairs_are_orthogonal(variant, gamma, value):
    unit = torch.eye(512)
    total, parts = built(variant, gamma=gamma).loss({"z_a": unit[:256], "z_b": unit[256:]})
    assert (total - parts["nt_xent"]).item() == pytest.approx(value, abs=2e-6)


@pytest.mark.parametrize("variant", ["joint", "push", "dual"])
def test_one_seed_gives_the_family_the_same_weights_and_gamma_zero_simclr_bit_for_bit(variant):
    found, simclr, other = [], built("simclr"), built(variant, gamma=0.0)
    state = other.state_dict()
    shared = {name: state.pop(name) for name in simclr.state_dict()}
    torch.testing.assert_close(shared, simclr.state_dict(), rtol=0, atol=0)
    assert {name.split(".")[0] for name in state} == ({"projector_lower"} if variant == "dual" else set())
    for method in (simclr, other):
        total, _ = method.loss(embedded(method))
        total.backward()
        found.append([total, *(weight.grad for weight in method.parameters())])
    if variant == "dual":
        assert all(weight.grad.abs().max() == 0 for weight in other.projector_lower.parameters())
    else:
        torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize("variant", FAMILY)
def test_latents_are_as_wide_as_the_encoder_and_projections_l2_normalized(variant):
    method = built(variant).eval()
    latents = method.latents(views(5)[0])
    assert list(latents) == (["upper", "lower"] if variant == "dual" else ["h"])
    assert all(rows.shape == (5, method.encoder.width) for rows in latents.values())
    for rows in method.project(latents).values():
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(5))
    assert method.halves == (variant == "dual")
    params = pretraining(variant)
    reads = method_class(params.method).reads(typed_options(params))
    assert reads == ({"encoder"} if variant == "simclr" else {"encoder", "gamma"})


def test_two_halves_have_a_mean_that_is_global_average_pooling_and_meet_only_in_receptive_fields():
    method, images = built("dual").eval(), views(4, 32)[0]
    changed = images.clone()
    changed[:, :, 24:] += 2.0
    with torch.no_grad():
        latents, after, pooled = method.latents(images), method.latents(changed), method.encoder(images).mean((2, 3))
    torch.testing.assert_close((latents["upper"] + latents["lower"]) / 2, pooled, atol=1e-6, rtol=1e-5)
    moved = {name: (after[name] - latents[name]).norm().item() for name in latents}
    assert moved["lower"] > 3 * moved["upper"]


def test_the_second_projection_collapses_and_the_first_does_not():
    training, base = Training(built("dual", gamma=1.0), lr=1e-2), normal(12, 3, 16, 16, seed=3)
    for step in range(6):
        training.step(*(base + 0.5 * normal(2, *base.shape, seed=step)))
    with torch.no_grad():
        projections = training.method.project(training.method.latents(base))
    std = {name: z.std(0).mean().item() for name, z in projections.items()}
    assert std["z_lower"] < 0.5 * std["z_upper"], std


@pytest.mark.parametrize(
    ("variant", "changes", "words"),
    [
        ("simclr", {"method": "simclrr"}, "no method is named 'simclrr' (did you mean simclr?); allowed: barlow_"),
        ("lookalikes", {"gamma": 1.5}, "lookalikes.term is lookalikes, a share of the loss, with gamma 1.5; allowed: "),
        ("lookalikes", {"gamma": -0.1}, "with gamma -0.1; allowed: a gamma of 0 to 1"),
        ("lookalikes", {"neighbors": 16}, "lookalikes.neighbors is 16; allowed: below the batch size, 16"),
        ("lookalikes", {"latents": "halves", "gamma": 1.0}, "gamma is 1, which leaves the first of its latents "),
        ("joint", {"neighbors": 5}, "joint.neighbors is 5, which has no effect with term pull"),
        ("dual", {"term": "none"}, "variants.dual.term is 'none', "),
        ("dual", {"image_size": 8}, "image_size is 8, which gives the encoder's final map 1 row(s); allowed with l"),
        ("dual", {"augment": {"crop_pixels": 8}}, "augment.crop_pixels of dual is 8, which its network cannot take"),
        ("moco_groups", {"queue": 48}, "queue is 48; allowed: a multiple of 32, the keys that join it in a step"),
        ("moco_groups", {"queue": 24, "symmetric": False}, "moco_groups.queue is 24; allowed: a multiple of 16"),
        *(("moco_groups", {"norm_rows": rows}, f"norm_rows is {rows}; allowed: 0 ") for rows in (1, 3, 16)),
        ("moco_groups", {"micro_batch_size": 4}, "divides micro_batch_size, 4, into 2 groups"),
        ("moco_groups", {"norm_rows": 0}, "shuffle is True, which has no effect with norm_rows 0; set norm_rows to"),
        ("cmc", {"negatives": 5}, "cmc.negatives is 5, which has no effect with form batch; set form to bank or nce"),
        ("cmc", {"augment": {"grayscale": 0.2}}, "variants.cmc.augment.grayscale is 0.2; allowed with cmc: 0"),
        ("cpc", {"furthest": 6}, "variants.cpc.furthest is 6; allowed: a whole number "),
        ("cpc", {"form": "asynchronous"}, "form is asynchronous, which has no effect with loss info_nce; set loss to "),
        *(("cpc", {"image_size": size}, f"{size}, which has no grid of 7x7 patches; allowed") for size in (8, 20, 30)),
        ("kwta", {"units": 10, "sparsity": 0.95}, "kwta.sparsity is 0.95, which makes all 10 units active; allowed"),
        ("kwta_contrast", {"triplets": "random"}, "triplets is random, which has no effect with loss contrast"),
        ("kwta", {"loss": "positives", "margin": 0.4}, "margin is 0.4, which has no effect with loss positives"),
        ("kwta", {"scaling": "off", "scaling_strength": 2.0}, "strength is 2.0, which has no effect with scaling off"),
        ("kwta_hard", {"hardness": 5.0}, "hardness is 5.0, which has no effect with training_code hard"),
        ("patch_filters", {"augment": {"crop_pixels": 7}}, "7; allowed for the method patch_filters with layers 1: "),
        ("patch_filters", {"augment": {"crop_pixels": 11}}, "11; allowed for the method patch_filters with layers 1: "),
        ("patch_filters_two", {"augment": {"crop_pixels": 14}}, "with layers 2: 15 to 20"),
    ],
)
def test_a_variant_that_cannot_be_is_refused_in_one_line(variant, changes, words):
    refused(lambda: try_method(pretraining(variant, **changes), images=64, fitting=64, classes=2), words)
