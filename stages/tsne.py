"""Draw t-SNE pictures of one variant's latents, of the same images for all variants."""

from pathlib import Path

from lib.runtime.stage import run_stage


def main(variant: str) -> None:
    from lib.evaluate.tsne import embed_2d, kind_of, select, title
    from lib.params.experiment import read_experiment
    from lib.report.figures_tsne import draw_tsne
    from lib.runtime.files import read_arrays, write_arrays

    tsne = read_experiment().tsne
    latents, shown = select(read_arrays(Path("data/embeddings") / f"{variant}.npz"), tsne)
    maps = {}
    for name, features in latents.items():
        print(f"{variant}: t-SNE of {name}, {len(features)} points, {tsne.iterations} iterations", flush=True)
        maps[name] = embed_2d(features, tsne, f"{variant}: t-SNE of {name}")
        heading = title(variant, name, tsne.points, len(features), tsne.perplexity, kind_of(shown))
        picture = Path("plots/tsne") / variant / f"{name}.png"
        draw_tsne(picture, maps[name], shown["labels"], shown["classes"].tolist(), heading)
    write_arrays(Path("data/tsne") / f"{variant}.npz", {**maps, **shown})


if __name__ == "__main__":
    run_stage(main, "Draw t-SNE pictures of one variant's test latents.", per_variant=True)
