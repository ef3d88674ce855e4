"""CPC on patches, Hinge-CPC and CLAPP alone: their variants, as the authors have them but for their size."""

from torch import Tensor

from lib.methods.cpc import CPC
from tests.examples import built, normal

# the authors' scripts: --contrast_mode hinge --asymmetric_W_pred --negative_samples 1 --sample_negs_locally
# --sample_negs_locally_same_everywhere --either_pos_or_neg_update, and --model_splits 6 or 1; CLAPP-s has the first
# of these and 6 splits
HINGE_CPC = {"loss": "hinge", "asymmetric": True, "negatives": 1, "places": "same", "form": "asynchronous"}
CLAPP = {**HINGE_CPC, "local": True}
CLAPP_S = {"loss": "hinge", "asymmetric": False, "negatives": 16, "places": "any", "form": "synchronous", "local": True}
VARIANTS = {"cpc": {}, "hinge_cpc": HINGE_CPC, "clapp": CLAPP, "clapp_s": CLAPP_S, "infomax": {"local": True}}


def method(variant: str = "cpc", **options) -> CPC:
    return built("cpc", channels=4, **{**VARIANTS[variant], **options})


def views(count: int = 6) -> list[Tensor]:
    return [normal(count, 3, 16, 16)]


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def relu(value: float) -> float:
    return max(0.0, value)
