"""One picture with the t-SNE of every variant."""

from pathlib import Path
from typing import Any

from lib.runtime.stage import run_stage


def main(raw: dict[str, Any]) -> None:
    from lib.params.pretraining import variant_names
    from lib.report.figures import save_figure
    from lib.report.overview import overview_figure, read_maps

    maps = {variant: read_maps(variant) for variant in variant_names(raw)}
    save_figure(Path("plots/tsne/overview.png"), overview_figure, maps)


if __name__ == "__main__":
    run_stage(main, "Draw the t-SNE pictures of all variants side by side.")
