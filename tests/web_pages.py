"""Pages that hold every kind of block, for the front end's tests: numbers with known values, awkward texts, a large graph."""

import random
import time
from collections.abc import Mapping
from typing import Any

from assay.app.arguments import flag, integer, number, string
from assay.app.blocks import (
    AnyBlock,
    bars,
    claims,
    column,
    contexts,
    facts,
    form,
    graph,
    heatmap,
    histogram,
    href,
    line,
    link,
    links,
    patterns,
    scatter,
    strong,
    table,
    term,
    terms,
    text,
    texts,
    tokens,
    unexplained,
    words,
)
from assay.app.documents import PAGES, Made, page
from assay.app.verbs import VERBS, verb

HOSTILE = '<img src=x onerror="window.broken=1"><script>window.broken=1</script>'
PIECES = [
    "The",
    " old",
    " painter",
    " said",
    " that",
    " <b>",
    "the",
    "</b>",
    " paintings",
    "\n",
    " in",
    " the",
    " hall",
    " were",
    " his",
    ".",
]


def draw(seed: int = 0) -> random.Random:
    return random.Random(seed)


def gauss(rng: random.Random, low: float, high: float) -> float:
    return min(high, max(low, rng.gauss((low + high) / 2, (high - low) / 4)))


def window(rng: random.Random, at: int, top: float) -> Any:
    values = [0.0] * len(PIECES)
    values[at] = top
    if at:
        values[at - 1] = top * 0.3
    return {
        "pieces": [*PIECES[:-1], HOSTILE] if rng.random() < 0.2 else PIECES,
        "values": values,
        "at": at,
        "document": f"wikitext/{rng.randrange(900)}",
        "position": 40 + rng.randrange(900),
    }


def pictures() -> list[AnyBlock]:
    rng = draw(1)
    edges = [0.1 * 1.4**n for n in range(19)]
    values = [
        [round(rng.gauss(0, 0.06) + (0.75 if row in (7, 8) and column == 9 else 0), 3) for column in range(14)]
        for row in range(12)
    ]
    values[0][3] = None
    names = ["When", " Mary", " and", " John", " went", " to", " the", " store", ",", " John", " gave", " a", " drink", " to"]
    causal = [
        [
            [1.0 / (query + 1) if head == 0 else float(key == max(0, query - head)) for key in range(len(PIECES))]
            for query in range(len(PIECES))
        ]
        for head in range(3)
    ]
    causal = [
        [[value if key <= query else 0.0 for key, value in enumerate(row)] for query, row in enumerate(head)] for head in causal
    ]
    lines = [
        {
            "label": name,
            "points": [
                {"x": x / 4, "y": top * x / (1 + x), "low": top * x / (1 + x) - 0.12, "high": top * x / (1 + x) + 0.12}
                for x in range(13)
            ],
        }
        for name, top in (("this direction", 1.1), ("random directions", 0.2))
    ]
    lines[0]["points"][7] |= {"y": None, "low": None, "high": None}
    return [
        histogram(
            "density",
            edges,
            [{"label": "tokens", "counts": [round(4000 / (1 + n) ** 2) for n in range(18)]}],
            {"label": "activation", "log": True},
            {"label": "tokens", "log": True},
            title="How strongly it fires",
            help="activation",
        ),
        line(
            "dose",
            lines,
            {"label": "strength (share of the residual norm)"},
            {"label": "effect in log-odds"},
            title="Dose curve",
            help="dose",
            marks=[{"x": 2.25, "label": "text breaks"}, {"y": 0.5, "label": "bar"}],
        ),
        bars(
            "promoted",
            [
                {"label": " the", "value": 2.41, "low": 2.2, "high": 2.6},
                {"label": " a", "value": 1.2},
                {"label": "\n", "value": 0.7},
                {"label": " <script>", "value": -1.1, "low": -1.4, "high": -0.9},
            ],
            "change of the logit",
            title="Promoted and suppressed tokens",
            help="promoted",
        ),
        scatter(
            "poly",
            [
                {
                    "x": gauss(rng, 0.2, 6),
                    "y": gauss(rng, 1, 9),
                    "label": f"mlp_act.{n % 4}.{n}",
                    "group": f"layer {n % 4}",
                    "href": href("feature", feature=f"mlp_act.{n % 4}.{n}"),
                }
                for n in range(240)
            ],
            {"label": "concepts it responds to"},
            {"label": "spread over features"},
            title="Neurons",
            help="polysemantic",
        ),
        heatmap(
            "patching",
            [str(n) for n in range(12)],
            names,
            values,
            row_label="layer",
            column_label="token",
            unit="effect",
            low=[[None if value is None else value - 0.1 for value in row] for row in values],
            high=[[None if value is None else value + 0.1 for value in row] for row in values],
            title="Where the name is carried",
            help="effect",
            href="#/circuit?layer={row}&token={column}",
        ),
        patterns("attention", PIECES, ["L3.H0", "L3.H1", "L5.H2"], causal, title="Attention patterns", help="pattern"),
        tokens(
            "live",
            PIECES,
            [
                {
                    "name": f"L4.{n}",
                    "label": f"fires on “{PIECES[n].strip()}”",
                    "href": href("feature", feature=f"L4.{n}"),
                    "values": [
                        round(abs(rng.gauss(0, 1)) if rng.random() < 0.2 else 0.0, 3) if at != n else 4.5
                        for at in range(len(PIECES))
                    ],
                }
                for n in range(9)
            ],
            title="Features along a text",
            help="latent",
        ),
    ]


def small_graph(**more: Any) -> AnyBlock:
    rng = draw(2)
    positions = ["<bos>", " The", " capital", " of", " France", " is"]
    nodes: list[Any] = [
        {"id": f"e{at}", "label": piece, "layer": 0, "position": at, "value": 1.0, "kind": "embedding"}
        for at, piece in enumerate(positions)
    ]
    nodes += [
        {
            "id": f"L{layer}.{n}@{at}",
            "label": f"L{layer}.{n}",
            "layer": layer,
            "position": at,
            "value": abs(rng.gauss(0, 1)),
            "kind": "latent",
            "href": href("feature", feature=f"L{layer}.{n}"),
            "text": "fires on names of countries" if at == 4 else "fires after “of”",
            **({"group": "country"} if at == 4 and layer < 4 else {}),
        }
        for layer in range(1, 6)
        for at in range(1, 6)
        for n in range(rng.randrange(1, 4))
    ]
    nodes += [
        {"id": f"err{layer}", "label": f"error {layer}", "layer": layer, "position": 5, "value": 0.3, "kind": "error"}
        for layer in (2, 4)
    ]
    nodes += [
        {"id": f"out{piece}", "label": piece, "layer": 6, "position": 5, "value": share, "kind": "logit"}
        for piece, share in ((" Paris", 2.0), (" Lyon", 0.6))
    ]
    edges: list[Any] = [
        {"from": one["id"], "to": other["id"], "weight": round(rng.gauss(0.1, 0.4), 4)}
        for one in nodes
        for other in nodes
        if one["layer"] < other["layer"] and one["position"] <= other["position"] and rng.random() < 0.22
    ]
    return graph(
        "graph",
        nodes,
        edges,
        ["tokens", *(f"layer {n}" for n in range(1, 6)), "logits"],
        positions,
        title="Attribution graph",
        help="attribution graph",
        **more,
    )


def large_graph(n_nodes: int = 3000, n_edges: int = 30_000) -> AnyBlock:
    rng = draw(3)
    layers, positions = 26, 24
    nodes: list[Any] = [
        {
            "id": f"n{n}",
            "label": f"L{n % layers}.{n}",
            "layer": n % layers,
            "position": rng.randrange(positions),
            "value": rng.random(),
            "kind": "latent",
        }
        for n in range(n_nodes)
    ]
    edges: dict[tuple[str, str], float] = {}
    while len(edges) < n_edges:
        one, other = rng.choice(nodes), rng.choice(nodes)
        if one["layer"] < other["layer"]:
            edges[one["id"], other["id"]] = rng.gauss(0, 1) ** 3
    return graph(
        "large",
        nodes,
        [{"from": a, "to": b, "weight": weight} for (a, b), weight in edges.items()],
        [f"layer {n}" for n in range(layers)],
        [f" tok{n}" for n in range(positions)],
        title="A large graph",
    )


def card(id: str, verdict: str, **more: Any) -> Any:
    gates = [
        {
            "name": "sensitivity",
            "split": split,
            "estimate": 0.82,
            "low": 0.71,
            "high": 0.9,
            "sesoi": 0.5,
            "p": 0.0005,
            "passed": True,
            "required": True,
        }
        for split in ("confirm", "ood")
    ]
    gates.append(
        {
            "name": "near misses",
            "split": "confirm",
            "estimate": 0.41,
            "low": 0.2,
            "high": 0.6,
            "sesoi": 0.5,
            "p": 0.4,
            "passed": verdict == "supported",
            "required": True,
        }
    )
    return {
        "id": id,
        "statement": f"Latent {id} of resid_post.4 is explained by “ends with ‘ the’ after a preposition”",
        "kind": "explains",
        "verdict": verdict,
        "sentence": "On new documents the rule tells where the latent fires, also on documents of another style.",
        "reasons": [] if verdict == "supported" else ["underpowered"],
        "qualifiers": ["exploratory", "underpowered"] if verdict == "refuted" else [],
        "gates": gates,
        "href": href("claim", claim=id),
        "counterexamples": [
            {"pieces": PIECES[:7], "score": 0.02, "status": "verified"},
            {"text": HOSTILE, "score": None, "status": "open"},
        ],
        "shows_not": ["That the model uses this latent for anything.", "Anything about texts of another language."],
        **more,
    }


def everything(arguments: Mapping[str, Any]) -> list[AnyBlock]:
    rng = draw()
    first = arguments["first"]
    rows = [
        {
            "name": {"value": f"L4.{n}", "href": href("feature", feature=f"L4.{n}")},
            "explanation": f"fires on “{PIECES[n % len(PIECES)]}”",
            "density": 0.001 * (n + 1),
            "score": {"value": 0.9 - n / 200, "low": 0.8 - n / 200, "high": 0.95 - n / 200},
            "fired": 4000 - 30 * n,
            "top": [" the", "\n", HOSTILE][: 1 + n % 3],
            "verdict": ["supported", "refuted", "inconclusive", "not tested"][n % 4],
        }
        for n in range(first, min(120, first + 25))
    ]
    return [
        unexplained(
            "unexplained",
            [
                {"what": "of active latents", "share": 0.62, "low": 0.58, "high": 0.66},
                {"what": "of variance", "share": 0.44, "note": "measured on held-out tokens"},
                {"what": "of corpus tokens", "share": 0.351, "low": 0.34, "high": 0.36},
            ],
            title="What is not explained",
            help="unexplained",
        ),
        facts(
            "counts",
            [
                {"label": "latents", "value": 4096, "help": "latent"},
                {"label": "active", "value": 3891, "note": "205 never fired"},
                {"label": "explained", "value": 1480},
                {"label": "supported", "value": 1211, "tone": "good", "href": href("claims", verdict="supported")},
                {"label": "refuted", "value": 37, "tone": "bad"},
                {"label": "inconclusive", "value": 232, "tone": "warn"},
            ],
            title="What is known",
        ),
        text(
            "words",
            words(
                "A ",
                term("latent"),
                " stands for a ",
                term("feature", "concept"),
                " where a ",
                strong("tested claim"),
                " says so. See the ",
                link("ledger", "claims"),
                ". Hostile text stays text: ",
                HOSTILE,
            ),
            title="In words",
        ),
        table(
            "features",
            [
                column("name", "feature", "link", "feature"),
                column("explanation", "explanation"),
                column("score", "detection", "interval", "detection"),
                column("density", "density", "percent", "density"),
                column("fired", "fired", "bar"),
                column("top", "tokens", "tokens"),
                column("verdict", "verdict", "verdict", "verdict"),
            ],
            rows,
            total=120,
            offset=first,
            limit=25,
            param="first",
            sort=arguments["sort"],
            title="Features",
        ),
        contexts(
            "contexts",
            [
                {"label": "top", "windows": [window(rng, 2 + n % 12, 9.0 - n / 2) for n in range(12)]},
                {"label": "near misses", "windows": [window(rng, 0, 0.0) for _ in range(3)]},
            ],
            9.0,
            title="Where it fires",
            help="context",
        ),
        *pictures(),
        small_graph(intervene={"verb": "test_intervene", "arguments": {"prompt": "x"}}),
        texts(
            "sides",
            [
                {"label": "unchanged", "pieces": PIECES},
                {
                    "label": "steered",
                    "pieces": PIECES[::-1],
                    "values": [n / 4 for n in range(len(PIECES))],
                    "note": "perplexity 21",
                },
            ],
            title="Side by side",
            help="steering",
        ),
        claims(
            "claims",
            [
                card("c-31", "supported", rerun={"verb": "test_slow", "arguments": {"steps": 3}}),
                card("c-32", "refuted"),
                card("c-33", "inconclusive"),
            ],
            title="Claims",
            help="claim",
        ),
        links(
            "links",
            [
                {"label": f"L4.{n}", "href": href("feature", feature=f"L4.{n}"), "note": f"cosine {0.9 - n / 20:.2f}"}
                for n in range(7)
            ],
            title="Neighbours",
            help="neighbour",
        ),
        table(
            "tokens",
            [column("token", "token", "tokens"), column("share", "share", "percent")],
            [{"token": [" the"], "share": 0.41}, {"token": [" a"], "share": 0.2}, {"token": ["\t"], "share": None}],
            title="Top tokens",
        ),
        form(
            "try",
            "test_echo",
            "read",
            [
                {"name": "text", "label": "Text", "kind": "area", "required": True, "value": "The old painter"},
                {
                    "name": "strength",
                    "label": "Strength",
                    "kind": "slider",
                    "min": -2,
                    "max": 2,
                    "step": 0.1,
                    "value": 1,
                    "help": "dose",
                },
                {"name": "many", "label": "Tokens", "kind": "number", "min": 1, "max": 64, "value": 24},
                {"name": "mode", "label": "Mode", "kind": "choice", "choices": ["add", "clamp"], "value": "add"},
                {"name": "sample", "label": "Draw at random", "kind": "flag", "value": False},
            ],
            "Run it",
            title="Try it",
            help="steering",
        ),
        form(
            "wait",
            "test_slow",
            "read",
            [{"name": "steps", "label": "Steps", "kind": "number", "value": 40}],
            "Start",
            stream=True,
            title="A long one",
        ),
        terms(
            "terms",
            [
                {
                    "word": f"word {n}",
                    "meaning": "What it means, in a sentence that is long enough to be broken. " + HOSTILE * (n == 3),
                }
                for n in range(14)
            ],
            title="Words",
        ),
    ]


def odd() -> list[AnyBlock]:
    """Blocks with nothing, one thing, no number, or numbers without a range."""
    flat: Any = {"label": "value", "log": True}
    nothing: list[AnyBlock] = [
        text("t"),
        facts("f", []),
        table("ta", [column("a", "a")], []),
        contexts("c", [], 0.0),
        histogram("h", [], [], flat, flat),
        line("l", [], flat, flat),
        heatmap("hm", [], [], [], row_label="row", column_label="column", unit="x"),
        bars("b", [], "x"),
        graph("g", [], [], [], []),
        scatter("s", [], flat, flat),
        claims("cl", []),
        patterns("p", [], [], []),
        texts("te", []),
        links("li", []),
        unexplained("u", []),
        tokens("to", [], []),
        terms("tr", []),
        form("fo", "test_echo", "read", [], "Go"),
    ]
    same = [{"x": 0.0, "y": 0.0}, {"x": 0.0, "y": None}]
    single: list[AnyBlock] = [
        histogram("h1", [0.5, 0.5], [{"label": "n", "counts": [7.0]}], flat, {"label": "n", "log": True}),
        histogram("h3", [4.8, 10.0, 35.8], [{"label": "n", "counts": [2.0, 3.0]}], flat, {"label": "n"}),
        histogram("h2", [-1.0, 0.0, 1.0], [{"label": "n", "counts": [0.0, 0.0]}], flat, flat),
        line("l1", [{"label": "one", "points": same}], flat, {"label": "y"}),
        bars("b1", [{"label": "", "value": None}, {"label": "x", "value": 0.0}], "x"),
        line(
            "l2",
            [{"label": "tiny", "points": [{"x": 1e-12, "y": 1e15}, {"x": 3e-12, "y": -1e15}]}],
            {"label": "x"},
            {"label": "y"},
        ),
        heatmap("hm1", ["a"], ["b"], [[None]], row_label="r", column_label="c", unit="x", scale="sequential"),
        heatmap("hm2", ["a"], ["b", "c"], [[0.0]], row_label="r", column_label="c", unit="x"),
        graph(
            "g1",
            [{"id": "a", "label": "", "layer": 9.0, "position": -3.0, "value": 0.0, "kind": "odd"}],
            [{"from": "a", "to": "gone", "weight": 1.0}],
            ["0"],
            ["p"],
        ),
        graph(
            "tall",
            [
                {"id": f"{layer}", "label": f"{layer}", "layer": float(layer), "position": 0.0, "value": 1.0, "kind": "head"}
                for layer in range(70)
            ],
            [{"from": f"{layer}", "to": f"{layer + 1}", "weight": 1.0} for layer in range(69)],
            [f"layer {layer}" for layer in range(70)],
            ["p"],
        ),
        scatter("s1", [{"x": 0.0, "y": 5.0, "label": "x"}], flat, flat),
        patterns("p1", ["", " "], ["h"], [[[1.0], [0.5, 0.5]]]),
        contexts(
            "c1", [{"label": "top", "windows": [{"pieces": [], "values": [], "at": 0, "document": "", "position": 0}]}], 0.0
        ),
        tokens("to1", ["a"], [{"name": "n", "label": "", "href": "javascript:alert(1)", "values": []}]),
        unexplained("u1", [{"what": "of all", "share": None}]),
        links("li1", [{"label": "bad", "href": "javascript:alert(1)"}]),
        table(
            "ta1",
            [column("a", "a", "bar"), column("b", "b", "interval"), column("c", "c", "verdict"), column("d", "d", "tokens")],
            [{}, {"a": None, "b": {"value": None}, "c": "unheard of", "d": []}],
        ),
        table("ta2", [column("n", "n", "number")], [{"n": float(n)} for n in range(250)]),
    ]
    unknown: Any = {"type": "hologram", "id": "new", "title": "Of a later version"}
    return [*nothing, *single, unknown]


def register() -> None:
    """Pages and verbs of the tests, once."""
    if "everything" in PAGES:
        return

    @page(
        "everything",
        "Every kind of block",
        "A page with all there is.",
        group="Tests",
        first=integer("Row.", 0, 0),
        sort=string("Order.", "-score"),
    )
    def whole(workspace: Any, arguments: Mapping[str, Any]) -> Made:
        return Made(everything(arguments))

    @page("odd", "Odd numbers", "Nothing, one thing, no range.", group="Tests")
    def strange(workspace: Any, arguments: Mapping[str, Any]) -> Made:
        return Made(odd())

    @page("large", "A large graph", "3,000 nodes.", group="Tests")
    def large(workspace: Any, arguments: Mapping[str, Any]) -> Made:
        return Made([large_graph()])

    @page("broken", "Refused", "A page that is refused.", group="Tests", required=("thing",), thing=string("Anything."))
    def broken(workspace: Any, arguments: Mapping[str, Any]) -> Made:
        return Made([])

    @verb(
        "test_echo",
        "read",
        "Says what it got.",
        text=string("Text."),
        strength=number("Strength.", 1.0),
        many=integer("Tokens.", 24),
        mode=string("Mode.", "add"),
        sample=flag("Drawn."),
    )
    def echo(workspace: Any, arguments: Mapping[str, Any], report: Any) -> dict[str, Any]:
        return {
            "record": dict(arguments),
            "blocks": [facts("got", [{"label": key, "value": str(value)} for key, value in arguments.items()], title="Got")],
        }

    @verb(
        "test_intervene",
        "intervene",
        "Predicted against real.",
        prompt=string("Prompt."),
        node=string("Node."),
        factor=number("Factor.", 0.0),
    )
    def intervene(workspace: Any, arguments: Mapping[str, Any], report: Any) -> dict[str, Any]:
        rows = [{"what": arguments["node"], "predicted": -0.41, "real": -0.38 * (1 - arguments["factor"])}]
        return {
            "record": dict(arguments),
            "blocks": [
                table(
                    "out",
                    [column("what", "node"), column("predicted", "predicted", "number"), column("real", "real", "number")],
                    rows,
                )
            ],
        }

    @verb("test_slow", "read", "Takes its time.", long=True, steps=integer("Steps.", 40))
    def slow(workspace: Any, arguments: Mapping[str, Any], report: Any) -> dict[str, Any]:
        for step in range(arguments["steps"]):
            report("step", step, arguments["steps"])
            report.piece("unchanged", f" word{step}")
            report.piece("steered", f" other{step}")
            time.sleep(0.05)
        return {
            "record": {"steps": arguments["steps"]},
            "blocks": [facts("made", [{"label": "steps", "value": arguments["steps"]}], title="Result")],
        }

    assert "test_slow" in VERBS
