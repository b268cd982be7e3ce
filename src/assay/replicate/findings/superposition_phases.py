"""More features than dimensions, when features are rare enough."""

from assay.replicate.base import Lab, finding
from assay.replicate.records import Found, figure
from assay.testing.toy_phases import phases, train_toys

DENSITY, IMPORTANCE = (0.03, 0.1, 0.3, 1.0), (0.3, 0.7, 1.4, 2.0)  # not 1: both features would be alike
FEATURES, DIMENSIONS = 20, 5


@finding(
    "superposition-phases",
    title="Rare features share dimensions",
    paper="Elhage et al. 2022, arXiv 2209.10652",
    published="A small relu model keeps as many features as dimensions when features are dense, and more, in"
    " superposition, when they are rare; which happens for two features and one dimension is a phase diagram"
    " in density and importance.",
    method="Models of one dimension and two features over a grid of density and importance: share of cells in the"
    " phase whose loss in closed form is smallest. Models of 20 features in 5 dimensions: features represented"
    " per dimension (squared norms of their directions, at most 1 each), dense and rare.",
    differs="Few sizes and densities; geometry of the directions (polygons) is not looked at.",
    needs_model=False,
)
def superposition_phases(lab: Lab) -> Found:
    seeds = [lab.seed + number for number in range(lab.sizes.models)]
    names, agreement, dense, rare = [str(seed) for seed in seeds], [], [], []
    for number, seed in enumerate(seeds):
        lab.report("toy models", number, len(seeds))
        agreement.append(phases(DENSITY, IMPORTANCE, seed=seed).agreement)
        sizes = train_toys(FEATURES, DIMENSIONS, (1.0, 0.01), seed=seed).norms.square().clamp(max=1).sum(1) / DIMENSIONS
        dense.append(float(sizes[0]))
        rare.append(float(sizes[1]))
    return Found(
        (figure("share of cells in the phase that theory names", agreement, names, 0.8),
         figure("features per dimension, features always on", dense, names, 1.2, "below"),
         figure("features per dimension, features on 1% of the time", rare, names, 1.5)),
    )  # fmt: skip
