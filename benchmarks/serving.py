"""What monitors cost a server: tokens per second with them, over the same server without them.

    python benchmarks/serving.py [--model NAME] [--rounds N] [--tokens N] [--stream] [--update-docs]

1. Servers over one loaded model: without monitors, with one of three heads on three layers, with four such. All keep a log.
2. A round sends the same requests to each in turn, in another order each time; the first round is thrown away. Requests ask
   for a fixed number of tokens, greedy; streamed with `--stream`.
3. The ratio of a round is time with over time without: by the clock, and by the processor time of the whole process, which
   other programs on the machine disturb less. Given are the median of the rounds and its 95% bootstrap interval.
"""

import argparse
import json
import socket
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import uvicorn

from assay import load_model
from assay.model.model import Model
from assay.monitor.drift import baseline
from assay.monitor.records import Head, Monitor, bindings
from assay.monitor.thresholds import Threshold
from assay.monitor.units import UNITS, Pooling
from assay.serving.start import start

DOCS = Path(__file__).parent.parent / "docs" / "serving.md"
BEGIN = "<!-- table: begin, written by benchmarks/serving.py --update-docs -->\n"
END = "<!-- table: end -->"
TOKEN = "only-for-this-benchmark"
PROMPT = "Describe how bread is made, from the field to the table, and say what can go wrong at every step."
LIMIT = 1.05  # the most that monitors may cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--update-docs", action="store_true")
    given = parser.parse_args()
    model = load_model(given.model)
    rows = measure(model, given.rounds, given.tokens, given.stream)
    table = show(given.model, given.tokens, rows)
    sys.stdout.write(table)
    if given.update_docs and not given.stream:
        before, _, rest = DOCS.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        DOCS.write_text(before + BEGIN + table + END + after)


def monitors(model: Model, n: int) -> list[Monitor]:
    """Monitors of three heads each, with thresholds that are never reached and what drift is looked for in."""
    random = np.random.default_rng(0)
    layers, width = [int(model.n_layers * share) for share in (0.3, 0.5, 0.7)], model.dims.d_model
    times = {"created": "2026-01-01T00:00:00+00:00", "expires": "2999-01-01T00:00:00+00:00"}
    found = []
    for number in range(n):
        heads = tuple(Head(f"resid_post.{layer}", random.normal(size=width) / width, -1.0) for layer in layers)
        bars = {unit: Threshold(unit, 1e9, 0.01, 500, 1, 0.0001, 0.01) for unit in UNITS}
        held = baseline(random.normal(size=300), random.normal(size=(300, width)), heads[0].site)
        found.append(Monitor(f"monitor {number}", "nothing", heads, Pooling("segment"), {**bindings(model), **times}, bars,
                             baseline=held))  # fmt: skip
    return found


class Served:
    """A server on a socket of its own."""

    def __init__(self, model: Model, n: int, folder: Path) -> None:
        self.service = start(model, monitors(model, n), folder)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/v1/chat/completions"
        self.server = uvicorn.Server(uvicorn.Config(self.service.app(TOKEN), log_level="error", lifespan="on"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def time(self, at_once: int, tokens: int, stream: bool = False) -> tuple[float, float, int]:
        """Seconds by the clock and of the processor for so many requests at once, and tokens made."""
        body = {"model": self.service.served, "max_tokens": tokens, "temperature": 0, "stream": stream,
                **({"stream_options": {"include_usage": True}} if stream else {})}  # fmt: skip

        def ask(number: int) -> int:
            messages = [{"role": "user", "content": f"{number}. {PROMPT}"}]
            key = {"Authorization": f"Bearer {TOKEN}"}
            answer = httpx2.post(self.url, json={**body, "messages": messages}, headers=key, timeout=600)
            whole = answer.raise_for_status().text
            last = whole.rpartition("data: {")[2].partition("\n")[0] if stream else whole[1:]
            return json.loads("{" + last)["usage"]["completion_tokens"]

        clock, cpu = time.perf_counter(), time.process_time()
        with ThreadPoolExecutor(at_once) as pool:
            made = sum(pool.map(ask, range(at_once)))
        return time.perf_counter() - clock, time.process_time() - cpu, made

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join()


def measure(model: Model, rounds: int, tokens: int, stream: bool = False) -> list[dict[str, Any]]:
    """Rows of the table: per number of requests at once and of monitors."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        servers = {n: Served(model, n, Path(folder) / str(n)) for n in (0, 1, 4)}
        for at_once in (1, 8):
            found: dict[int, list[tuple[float, float, int]]] = {n: [] for n in servers}
            for number in range(rounds + 1):
                order = sorted(servers, key=lambda n: (n * 7 + number * 3) % 5)
                for n in order:
                    found[n].append(servers[n].time(at_once, tokens, stream))
            rows += [row(at_once, n, found) for n in servers if n]
        for server in servers.values():
            server.close()
    return rows


def row(at_once: int, n: int, found: dict[int, list[tuple[float, float, int]]]) -> dict[str, Any]:
    """Costs per token with n monitors over those without, round by round."""
    per = {m: np.array([[clock / made, cpu / made] for clock, cpu, made in found[m][1:]]) for m in (0, n)}
    ratios = per[n] / per[0]
    return {"at_once": at_once, "monitors": n, "tokens_per_second": float(1 / np.median(per[n][:, 0])),
            "clock": interval(ratios[:, 0]), "cpu": interval(ratios[:, 1])}  # fmt: skip


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """The median, and its 95% bootstrap interval."""
    random = np.random.default_rng(0)
    draws = np.median(random.choice(values, (4000, len(values))), 1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(np.median(values)), float(low), float(high)


def show(name: str, tokens: int, rows: list[dict[str, Any]]) -> str:
    """The table as Markdown."""
    heads = [f"{name}: requests at once", "monitors", "tokens/s with them"]
    heads += ["clock, with / without", "processor, with / without"]
    lines = [f"| {' | '.join(heads)} |", "|---|---|---|---|---|"]
    for each in rows:
        ratios = [f"{x:.3f} ({low:.3f} to {high:.3f})" for x, low, high in (each["clock"], each["cpu"])]
        cells = [f"{each['at_once']}", f"{each['monitors']}", f"{each['tokens_per_second']:.1f}", *ratios]
        lines.append(f"| {' | '.join(cells)} |")
    worst = max(each["cpu"][0] for each in rows)
    lines.append(f"\nReplies of {tokens} tokens. Most by processor time: {worst - 1:+.1%} (bar: {LIMIT - 1:.0%}).")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
