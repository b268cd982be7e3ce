"""A patching sweep as a picture: layers down, columns across, colour = effect (0 white)."""

import io

import numpy as np
from matplotlib.figure import Figure

from assay.records import PatchResult


def heat_map_png(result: PatchResult) -> bytes:
    """PNG bytes of the effect grid; colours are symmetric about 0."""
    effect = np.array(result.effect, dtype=float)
    limit = max(1.0, float(np.nanmax(np.abs(effect))))
    figure = Figure(figsize=(min(16.0, 3 + 0.45 * len(result.columns)), 2 + 0.22 * len(result.layers)))
    axes = figure.subplots()
    image = axes.imshow(effect, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    step = max(1, len(result.columns) // 32)
    axes.set_xticks(range(0, len(result.columns), step), result.columns[::step])
    axes.set_yticks(range(0, len(result.layers), 2), [str(layer) for layer in result.layers[::2]])
    axes.set_xlabel(result.axis)
    axes.set_ylabel("layer")
    axes.set_title(f"{result.plan['site']} ({result.plan['direction']}): 0 = corrupted, 1 = clean")
    figure.colorbar(image, ax=axes, label=f"normalised {result.plan['metric']}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight")
    return buffer.getvalue()
