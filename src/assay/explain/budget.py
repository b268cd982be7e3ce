"""A cap on what an endpoint may cost, in tokens and in money, that holds before each call.

1. Before a call its dearest outcome is reserved: an upper bound of the prompt's tokens (no tokenizer that cuts bytes makes
   more tokens than the text has bytes; `OVERHEAD` more for the message's own marks) and the longest reply that is asked for.
   A call whose bound does not fit into what is left is not made.
   While other calls are on their way their reservations count, and the call waits for them first.
2. After the call the reservation is replaced by what the endpoint counted (`usage`), or by an estimate where it counts nothing,
   which is said. A reply that was lost stays reserved: it may have been paid.
3. money = (prompt tokens x price in + reply tokens x price out) / 1,000,000: prices are per million tokens, as sellers say.

An endpoint that counts more than the bound (hidden reasoning beyond the limit asked for) can pass the cap by that one call.
"""

from dataclasses import dataclass, field
from threading import Condition

from assay.errors import AssayError, bad_argument
from assay.explain.records import Cost

OVERHEAD = 64  # tokens of a message's marks and of a default system prompt
BYTES_PER_TOKEN = 4  # of ordinary English, for expectations only
MILLION = 1_000_000


class BudgetSpent(AssayError):
    """The next call could pass the cap. What was asked so far is kept."""


@dataclass(frozen=True)
class Prices:
    """Per million tokens, of prompts and of replies."""

    price_in: float = 0.0
    price_out: float = 0.0

    def __post_init__(self) -> None:
        for name in ("price_in", "price_out"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise bad_argument(name, getattr(self, name), "0 or more, per million tokens")

    def cost(self, prompt_tokens: int, reply_tokens: int, calls: int = 1) -> Cost:
        """What calls with so many tokens in all come to."""
        money = (prompt_tokens * self.price_in + reply_tokens * self.price_out) / MILLION
        return Cost(calls, prompt_tokens, reply_tokens, money)


@dataclass(eq=False)
class Budget:
    """At most so many `tokens` (prompts and replies together) and so much `money`; None: no cap of that kind.

    Raises UsageError for a cap below 0, or a cap in money without prices. Safe to use from several threads.
    """

    tokens: int | None = None
    money: float | None = None
    price_in: float = 0.0
    price_out: float = 0.0
    spent: Cost = field(default_factory=Cost)
    lost: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        for name in ("tokens", "money"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise bad_argument(name, value, "0 or more, or None for no cap")
        self.prices = Prices(self.price_in, self.price_out)
        if self.money is not None and not (self.price_in or self.price_out):
            raise bad_argument("money", self.money, "a cap in money together with prices",
                               "Give --price-in and --price-out, per million tokens.")  # fmt: skip
        self._reserved, self._change = Cost(), Condition()

    def reserve(self, bound: Cost) -> None:
        """Set aside the dearest outcome of one call. Raises BudgetSpent where it does not fit."""
        with self._change:
            while (problem := self._problem(bound)) is not None:
                if self._reserved.calls == 0:
                    raise BudgetSpent(problem)
                self._change.wait()
            self._reserved = self._reserved.plus(bound)

    def settle(self, bound: Cost, actual: Cost) -> None:
        """Put what a call cost in the place of its reservation."""
        with self._change:
            self._reserved = self._reserved.plus(_minus(bound))
            self.spent = self.spent.plus(actual)
            self._change.notify_all()

    def lose(self, bound: Cost) -> None:
        """A call without a reply that may have been paid: its bound stays spent."""
        with self._change:
            self._reserved = self._reserved.plus(_minus(bound))
            self.lost = self.lost.plus(bound)
            self._change.notify_all()

    def restore(self, spent: Cost, lost: Cost) -> None:
        """What earlier runs of the same journal cost counts, too."""
        with self._change:
            self.spent, self.lost = self.spent.plus(spent), self.lost.plus(lost)

    def _problem(self, bound: Cost) -> str | None:
        """Why a call does not fit; None where it does."""
        after = self.spent.plus(self.lost).plus(self._reserved).plus(bound)
        if self.tokens is not None and after.prompt_tokens + after.reply_tokens > self.tokens:
            return self._sentence("tokens", self.tokens, bound)
        if self.money is not None and after.money > self.money:
            return self._sentence("money", self.money, bound)
        return None

    def _sentence(self, name: str, cap: float, bound: Cost) -> str:
        used = self.spent.plus(self.lost)
        tokens, option = used.prompt_tokens + used.reply_tokens, f"--budget-{name}"
        return (f"budget of {cap:g} {name}: the next call could take {bound.prompt_tokens + bound.reply_tokens} tokens"
                f" ({bound.money:.6g} in money) and {tokens} tokens ({used.money:.6g}) are spent."
                f" All replies so far are kept: raise {option} and run the same command to go on.")  # fmt: skip


def _minus(cost: Cost) -> Cost:
    return Cost(-cost.calls, -cost.prompt_tokens, -cost.reply_tokens, -cost.money)


def token_bound(text: str) -> int:
    """Tokens that a text cannot exceed as one message."""
    return len(text.encode("utf-8", "replace")) + OVERHEAD


def tokens_expected(text: str) -> int:
    """About how many tokens an ordinary text has; for estimates, never for the cap."""
    return -(-len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN) + 4
