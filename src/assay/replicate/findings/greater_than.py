"""A later year follows, and MLPs of the upper half bring it about."""

from assay.evidence.source import Source
from assay.replicate.base import Lab, finding
from assay.replicate.parts import enough, ranked, restored
from assay.replicate.records import Found, figure


@finding(
    "greater-than",
    title="Greater-than is computed by late MLPs",
    paper="Hanna, Liu & Variengien 2023, arXiv 2305.00586",
    published="GPT-2 small puts 82% more probability on years after the start year than before it. Attention heads"
    " bring the year to the last position, and MLPs 8 to 11 compute the comparison.",
    method="The model's own ability first: log-odds of later against earlier years. Attention and MLP outputs are"
    " ranked by attribution on discover, as few as carry the task are chosen on tune, and the claim about them"
    " is tested. On tune: what the MLPs of the upper half alone restore.",
    differs="Whole attention and MLP outputs in place of edges; only two-digit endings whose first token tells later"
    " from earlier are scored, which with tokens of one digit leaves the first digit.",
)
def greater_than(lab: Lab) -> Found:
    model, discover = lab.model, lab.pairs("greater_than", "discover")
    odds = model.score(discover.clean, discover.metric("logit_diff")).tolist()
    able = figure("log-odds of later years, clean prompts", odds, discover.templates, 0.0)
    if not able.holds:
        return Found((able,), lacks=f"it does not prefer later years: log-odds {able.value:.2f}")
    tune = lab.pairs("greater_than", "tune")
    order = [name for name, effect in ranked(lab, discover, "components") if effect > 0]
    chosen = enough(lab, tune, order)
    claim = lab.tested("mediates", Source("greater_than"), chosen, f"{', '.join(chosen)} tend to carry greater-than")
    upper = [f"mlp_out.{layer}" for layer in range(model.n_layers // 2, model.n_layers)]
    share = figure("share restored by the MLPs of the upper half alone", restored(model, tune, upper), tune.templates, 0.25)
    return Found((able, share), (claim,), notes=(f"chosen: {', '.join(chosen)}",))
