"""An OpenAI-compatible endpoint with a journal: no reply that was paid for is asked for twice.

1. `openai:MODEL@URL` names it; a key comes from ASSAY_EXPLAINER_KEY (for api.openai.com also from OPENAI_API_KEY), is sent and
   never kept or shown.
2. key of a call = SHA-256 of (address, model, messages, parameters). A reply in the journal under that key is the answer.
3. Before a call its bound is reserved (`assay.explain.budget`) and a *begun* line is written; when the reply is there, another
   one. Every line is on the disk (fsync) before anything goes on. After a kill, calls that were begun and have no reply are
   counted as lost at their bound: they may have been paid. What a kill left of a last line is cut off.
4. A call that fails for a time (429, 5xx, timeout, broken connection) is tried again after a growing pause, or the one the
   endpoint asks for. A reply that does not come in time may still be paid, so its bound is lost and another one is reserved.
   What stays without an answer is *unanswered*: whoever asked must not keep what was made without it, and a later run asks
   again. After `RUNS` runs it counts as a failed reply for good. `GIVE_UP` of them in a row end the run.
5. A refusal, an empty reply or one that is not as asked for was paid: it is kept, and fails.
6. Spellings: an endpoint that refuses `max_tokens` or `temperature` by name is asked with `max_completion_tokens`, or without
   a temperature, from then on; the journal's lines say how each call was sent.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import ip_address
from pathlib import Path
from threading import Event, Lock
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from filelock import FileLock, Timeout

from assay.errors import AssayError, NeedsExtra, StoreError, bad_argument
from assay.explain.budget import Budget, Prices, token_bound, tokens_expected
from assay.explain.prompts import LONGEST_EXPLANATION, Prompt
from assay.explain.records import Cost
from assay.explain.tools import Reply

JOURNAL = "calls.jsonl"
NAMED = re.compile(r"openai:(?P<model>.+)@(?P<url>https?://.+)", re.S)
KEY, HOSTED_KEY, HOSTED = "ASSAY_EXPLAINER_KEY", "OPENAI_API_KEY", "api.openai.com"
SECONDS, TRIES, GIVE_UP, LONGEST_PAUSE = 60.0, 5, 5, 30.0
RUNS = 3  # that end without an answer to a prompt, before it counts as a failed reply
LARGEST_REPLY = 1 << 20
RETRIED = (408, 409, 425, 429)
DIGITS = "".join(chr(0x1D7D8 + digit) for digit in range(10))  # four bytes each, the most that a character has
NUMBERED = 8
PLACEHOLDER, ORDINARY = DIGITS[0] * (LONGEST_EXPLANATION - NUMBERED), 120  # explanations of a dry run: the longest; as expected


class EndpointError(AssayError):
    """An endpoint that does not answer, or does not accept the key or the model. What was asked so far is kept."""


@dataclass(frozen=True)
class Endpoint:
    """Where to ask, whom, and how many calls at once. The key is sent, never kept or shown."""

    url: str
    model: str
    key: str = field(default="", repr=False)
    together: int = 4
    timeout: float = SECONDS
    tries: int = TRIES

    def __post_init__(self) -> None:
        for name, least in (("together", 1), ("tries", 1)):
            if getattr(self, name) < least:
                raise bad_argument(name, getattr(self, name), f"{least} or more")
        if not 0 < self.timeout < float("inf"):
            raise bad_argument("timeout", self.timeout, "seconds above 0")

    @staticmethod
    def named(text: str, **settings: Any) -> "Endpoint":
        """Of `openai:MODEL@URL`, with the key of the environment. Raises UsageError for anything else."""
        found = NAMED.fullmatch(text.strip())
        host = urlsplit(found["url"]).hostname if found else None
        if found is None or not host:
            raise bad_argument("explainer", _without_login(text), "openai:MODEL@URL",
                               "For example openai:qwen3@http://127.0.0.1:8000/v1.")  # fmt: skip
        key = os.environ.get(KEY) or (os.environ.get(HOSTED_KEY, "") if host == HOSTED else "")
        return Endpoint(found["url"], found["model"], key, **settings)

    @property
    def address(self) -> str:
        """The address without user names, passwords and queries: only this is asked, kept and shown."""
        parts = urlsplit(self.url)
        return urlunsplit((parts.scheme, parts.netloc.rsplit("@", 1)[-1], parts.path.rstrip("/"), "", ""))

    @property
    def text(self) -> str:
        """As it is named, with the address that is kept."""
        return f"openai:{self.model}@{self.address}"

    @property
    def here(self) -> bool:
        """Whether it is on this machine, where nothing is paid."""
        return _is_here(urlsplit(self.url).hostname or "")


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _without_login(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//", text)


# the journal --------------------------------------------------------------------------------------


class Journal:
    """`calls.jsonl` of a folder: replies by key, and what earlier runs spent. One process at a time.

    Raises StoreError where another process has it open, it cannot be written, or a line that is not the last is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL
        self.replies: dict[str, dict[str, Any]] = {}
        self.open: dict[str, Cost] = {}
        self._given_up: Counter[str] = Counter()
        self.spent, self.lost = Cost(), Cost()
        self._lock = Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._owner = FileLock(folder / f"{JOURNAL}.lock", timeout=0)
            self._owner.acquire()
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115  (closed by `close`)
        except Timeout as error:
            raise StoreError(f"{self.path}: another process is asking with this journal. Wait for it to end.") from error
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be written ({error.strerror or error}). Choose another place.") from error
        self._read()

    def begin(self, key: str, bound: Cost) -> None:
        """A call is about to be made."""
        self._write({"begun": key, "bound": _plain(bound)})

    def end(self, key: str, record: dict[str, Any]) -> None:
        """Its reply. From here on it is never asked again."""
        self._write({"key": key, **record})
        self.replies[key] = record

    def drop(self, key: str) -> None:
        """It failed in a way that is not paid."""
        self._write({"unpaid": key})

    def give_up(self, key: str, why: str) -> bool:
        """A run ends without an answer; whether it was the last one that asks."""
        self._write({"gave_up": key, "why": why})
        return self._without(key, why)

    def close(self) -> None:
        """Let another process have it."""
        self._file.close()
        self._owner.release()

    def _write(self, record: dict[str, Any]) -> None:
        """One whole line, on the disk; nothing of it where that fails. Raises StoreError."""
        line = (json.dumps(record) + "\n").encode()
        with self._lock:
            handle, size = self._file.fileno(), os.fstat(self._file.fileno()).st_size
            try:
                while line:
                    line = line[os.write(handle, line) :]
                os.fsync(handle)
            except OSError as error:
                os.ftruncate(handle, size)
                raise StoreError(f"{self.path}: cannot be written ({error.strerror or error}). Make room and go on.") from error

    def _read(self) -> None:
        """All lines; what is left of a line that a kill cut short is removed. Repeated keys: the first reply counts."""
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.path, whole)
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise StoreError(f"{self.path}, line {number}: not a line of this journal ({error})."
                                 " Restore it, or remove it and pay again.") from error  # fmt: skip
        for bound in self.open.values():
            self.lost = self.lost.plus(bound)

    def _take(self, record: dict[str, Any]) -> None:
        if "begun" in record:
            key, bound = record["begun"], Cost(**record["bound"])
            self.open[key] = self.open[key].plus(bound) if key in self.open else bound
        elif "unpaid" in record:
            self._settle(record["unpaid"])
        elif "gave_up" in record:
            self._without(record["gave_up"], record["why"])
        else:
            self._settle(record["key"])
            self.spent = self.spent.plus(Cost(**record["cost"]))
            self.replies.setdefault(record.pop("key"), record)

    def _without(self, key: str, why: str) -> bool:
        self._given_up[key] += 1
        if last := self._given_up[key] >= RUNS:
            failed = f"no answer in {RUNS} runs; the last: {why}"
            self.replies.setdefault(key, {"text": None, "failed": failed, "cost": _plain(Cost())})
        return last

    def _settle(self, key: str) -> None:
        """Of several tries one is settled; the others stay lost."""
        bound = self.open.pop(key)
        if bound.calls > 1:
            one = Cost(1, bound.prompt_tokens // bound.calls, bound.reply_tokens // bound.calls, bound.money / bound.calls)
            rest = Cost(bound.calls - 1, bound.prompt_tokens - one.prompt_tokens, bound.reply_tokens - one.reply_tokens,
                        bound.money - one.money)  # fmt: skip
            self.open[key] = rest


def _plain(cost: Cost) -> dict[str, Any]:
    return {"calls": cost.calls, "prompt_tokens": cost.prompt_tokens, "reply_tokens": cost.reply_tokens, "money": cost.money}


# asking -------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Failed(Exception):
    """One try without a reply. `paid`: it may have been; `again`: seconds to wait, None: not again; `fatal`: nothing helps."""

    why: str
    paid: bool = False
    again: float | None = None
    fatal: bool = False


class Asker:
    """Asks one endpoint, with a budget and a journal in `folder`. Close it, or use it in a `with`.

    Raises NeedsExtra where the client is missing, StoreError for a journal that cannot be used.
    """

    def __init__(self, endpoint: Endpoint, folder: Path, budget: Budget | None = None,
                 sleep: Callable[[float], Any] | None = None) -> None:  # fmt: skip
        self.endpoint, self.budget = endpoint, Budget() if budget is None else budget
        self._client  # noqa: B018  (fails before a journal is made)
        self.journal = Journal(folder)
        self.budget.restore(self.journal.spent, self.journal.lost)
        self._stop, self._in_a_row = Event(), 0
        self._sleep = self._stop.wait if sleep is None else sleep
        self._limit, self._temperature = "max_tokens", True
        self.estimated = 0  # replies whose tokens the endpoint did not count
        self.unanswered: dict[str, str] = {}
        self._used: set[str] = set()

    def __enter__(self) -> "Asker":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let the journal go."""
        self._stop.set()
        self._client.close()
        self.journal.close()

    @property
    def name(self) -> str:
        """How explanations call it."""
        return f"openai:{self.endpoint.model}"

    def ask(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """Replies in order; the same prompt is asked once. Raises BudgetSpent or EndpointError: what came is in the journal.

        The first reply to a prompt that a run takes has its cost, whichever run paid it: costs add up to what was paid.
        Prompts without an answer, which the next run asks again, are in `unanswered`: key -> why.
        """
        keys = [call_key(self.endpoint, prompt) for prompt in prompts]
        todo = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in self.journal.replies}
        made = self._ask(todo)
        return [self._reply(key, made) for key in keys]

    def _reply(self, key: str, made: dict[str, Reply]) -> Reply:
        first = key not in self._used
        self._used.add(key)
        if key in made and first:
            return made[key]
        record = self.journal.replies.get(key)
        if record is None:  # it failed just now, for all who ask
            return Reply(None, Cost(), False, made[key].failed)
        return Reply(record["text"], Cost(**record["cost"]) if first else Cost(), True, record["failed"])

    def _ask(self, todo: dict[str, Prompt]) -> dict[str, Reply]:
        made: dict[str, Reply] = {}
        if not todo:
            return made
        waiting, running = list(reversed(todo.items())), {}
        pool = ThreadPoolExecutor(min(self.endpoint.together, len(todo)))
        try:
            while waiting or running:
                while waiting and len(running) < self.endpoint.together:
                    key, prompt = waiting.pop()
                    running[pool.submit(self._one, key, prompt)] = key
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    made[running.pop(future)] = self._counted(future)
        except BaseException:
            waiting.clear()
            self._stop.set()
            wait(running)  # replies on their way are kept
            raise
        finally:
            pool.shutdown(wait=True)
            self._stop.clear()
        return made

    def _counted(self, future: "Future[Reply]") -> Reply:
        """One result; raises EndpointError when too many in a row have none."""
        reply = future.result()
        without = reply.text is None and reply.cost.calls == 0
        self._in_a_row = self._in_a_row + 1 if without else 0
        if self._in_a_row >= GIVE_UP:
            raise EndpointError(f"{self.endpoint.address}: {self._in_a_row} calls in a row have no answer; the last:"
                                f" {reply.failed}. All replies so far are kept: run the same command to go on.")  # fmt: skip
        return reply

    def _one(self, key: str, prompt: Prompt) -> Reply:
        """One prompt, tried until it is answered or given up."""
        bound = self.budget.prices.cost(token_bound(prompt.text), prompt.max_tokens)
        failed = ""
        for attempt in range(self.endpoint.tries):
            self.budget.reserve(bound)
            if self._stop.is_set():  # while it waited
                self.budget.settle(bound, Cost())
                return Reply(None, Cost(), False, failed or "stopped")
            try:
                record = self._try(key, prompt, bound)
            except _Failed as problem:
                failed = problem.why
                if problem.fatal:
                    raise EndpointError(f"{self.endpoint.address}, model {self.endpoint.model}: {failed}") from problem
                if problem.again is None or self._stop.is_set():
                    return Reply(None, Cost(), False, failed)
                if attempt + 1 < self.endpoint.tries:
                    self._sleep(min(problem.again or 0.5 * 2**attempt, LONGEST_PAUSE))
                continue
            self.estimated += record["counted"] == "estimated"
            return Reply(record["text"], Cost(**record["cost"]), False, record["failed"])
        if not self.journal.give_up(key, failed):
            self.unanswered[key] = failed
        return Reply(None, Cost(), False, failed)

    def _try(self, key: str, prompt: Prompt, bound: Cost) -> dict[str, Any]:
        """One try, with its reservation put right whatever happens. Raises _Failed, or StoreError for a full disk."""
        paid = False
        try:
            self.journal.begin(key, bound)
            paid = True  # from here on it may be
            record = self._send(prompt)
            self.journal.end(key, record)
        except BaseException as problem:
            unpaid = isinstance(problem, _Failed) and not problem.paid
            if paid and not unpaid:
                self.budget.lose(bound)
                raise
            self.budget.settle(bound, Cost())
            if unpaid:
                self.journal.drop(key)
            raise
        self.budget.settle(bound, Cost(**record["cost"]))
        return record

    def _send(self, prompt: Prompt) -> dict[str, Any]:
        import openai

        how: dict[str, Any] = {self._limit: prompt.max_tokens, **({"temperature": 0} if self._temperature else {})}
        try:
            raw = self._client.chat.completions.with_raw_response.create(
                model=self.endpoint.model, messages=prompt.messages, **how
            )  # type: ignore[call-overload]
            body = raw.content
        except openai.APITimeoutError as error:
            raise _Failed(f"no reply within {self.endpoint.timeout:g} s", paid=True, again=0.0) from error
        except openai.APIConnectionError as error:
            raise _Failed(f"no connection ({self._safe(error.__cause__ or error)})", *_connection(error)) from error
        except openai.APIStatusError as error:
            raise self._status(error, how) from error
        return self._record(prompt, body, how)

    def _status(self, error: Any, how: dict[str, Any]) -> _Failed:
        said = self._safe(error)
        status = error.status_code
        if status == 400 and "max_completion_tokens" in said and "max_tokens" in how:
            self._limit = "max_completion_tokens"
            return _Failed(said, again=0.001)
        if status == 400 and "temperature" in said and "temperature" in how:
            self._temperature = False
            return _Failed(said, again=0.001)
        if status in RETRIED or status >= 500:
            return _Failed(f"status {status}: {said}", again=_pause(error.response.headers))
        if status == 402:
            return _Failed(f"the account does not pay for this (status 402): {said}", fatal=True)
        if status in (401, 403):
            return _Failed(f"the key is not accepted (status {status}). Set {KEY}.", fatal=True)
        if status == 404:
            return _Failed(f"no such model or address (status 404): {said}", fatal=True)
        return _Failed(f"status {status}: {said}")

    def _record(self, prompt: Prompt, body: bytes, how: dict[str, Any]) -> dict[str, Any]:
        """What is kept of a reply. One that is no completion was answered all the same, and may have been paid."""
        text, failed, usage = _completion(body)
        counted = _counts(usage)
        prompt_tokens, reply_tokens = counted or (token_bound(prompt.text), token_bound(text or ""))
        cost = self.budget.prices.cost(prompt_tokens, reply_tokens)
        return {"text": text, "failed": failed, "cost": _plain(cost), "counted": "usage" if counted else "estimated",
                "prompt": prompt.name, "model": self.endpoint.model, "address": self.endpoint.address, "sent": how}  # fmt: skip

    def _safe(self, error: object) -> str:
        """What an error says, short, on one line and without the key."""
        said = " ".join(str(error).split())
        if self.endpoint.key:
            said = said.replace(self.endpoint.key, "[key]")
        return said[:300]

    @cached_property
    def _client(self) -> Any:
        try:
            import openai
        except ImportError as missing:
            raise NeedsExtra("Asking a language model", "explainers") from missing
        return openai.OpenAI(api_key=self.endpoint.key or "none", base_url=self.endpoint.address, max_retries=0,
                             timeout=self.endpoint.timeout)  # fmt: skip


# without asking -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """What a run would ask for. `expected`: for ordinary English and full replies; `at_most`: what no tokenizer exceeds,
    without calls that are tried again. `cached`: prompts that are answered already."""

    expected: Cost
    at_most: Cost
    cached: int


class DryRun:
    """Takes the place of an `Asker`: counts what would be asked and answers with placeholders of the largest size.

    Explainers get one of `LONGEST_EXPLANATION` characters, another for each; judges get nothing they can use. `folder`: whose
    journal has replies already.
    """

    def __init__(self, endpoint: Endpoint, prices: Prices | None = None, folder: Path | None = None) -> None:
        self.endpoint, self.prices = endpoint, Prices() if prices is None else prices
        self._seen: set[str] = set()
        self._kept: dict[str, Any] = {}
        if folder is not None and (folder / JOURNAL).is_file():
            journal = Journal(folder)
            self._kept = journal.replies
            journal.close()
        self._expected, self._at_most, self._cached = Cost(), Cost(), 0
        self.unanswered: dict[str, str] = {}

    @property
    def name(self) -> str:
        """How explanations call it."""
        return f"openai:{self.endpoint.model}"

    @property
    def estimate(self) -> Estimate:
        """Of everything asked so far."""
        return Estimate(self._expected, self._at_most, self._cached)

    def ask(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """Kept replies where there are some, else placeholders."""
        return [self._one(prompt) for prompt in prompts]

    def _one(self, prompt: Prompt) -> Reply:
        key = call_key(self.endpoint, prompt)
        if key in self._kept:
            self._cached += key not in self._seen
            self._seen.add(key)
            return Reply(self._kept[key]["text"], Cost(), True, self._kept[key]["failed"])
        if key not in self._seen:
            self._seen.add(key)
            short = tokens_expected(prompt.text.replace(PLACEHOLDER, "x" * ORDINARY))
            self._expected = self._expected.plus(self.prices.cost(short, prompt.max_tokens))
            self._at_most = self._at_most.plus(self.prices.cost(token_bound(prompt.text), prompt.max_tokens))
        number = "".join(DIGITS[int(digit)] for digit in f"{int(key[:12], 16) % 10**NUMBERED:0{NUMBERED}d}")
        return Reply(json.dumps({"explanation": PLACEHOLDER + number}, ensure_ascii=False))


def call_key(endpoint: Endpoint, prompt: Prompt) -> str:
    """What the reply of an endpoint to a prompt is kept by."""
    asked = [endpoint.address, endpoint.model, prompt.messages, {"temperature": 0, "max_tokens": prompt.max_tokens}]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode("utf-8", "replace")).hexdigest()


def _connection(error: Exception) -> tuple[bool, float | None]:
    """(may it have been paid, seconds to wait): what was never connected was never asked."""
    causes, cause = [], error.__cause__
    while cause is not None:
        causes.append(type(cause).__name__)
        cause = cause.__cause__
    return not any("Connect" in name for name in causes), 0.0


def _pause(headers: Any) -> float:
    """Seconds that an endpoint asks to wait; 0 where it does not say."""
    try:
        return max(0.0, float(headers.get("retry-after", 0)))
    except ValueError:
        return 0.0


def _completion(body: bytes) -> tuple[str | None, str, Any]:
    """(text, why it fails, usage) of the body of a reply."""
    if len(body) > LARGEST_REPLY:
        return None, f"longer than {LARGEST_REPLY} bytes", None
    try:
        record = json.loads(body)
        choice = record["choices"][0]
        message = choice["message"]
        text, usage = message.get("content"), record.get("usage")
        refused = message.get("refusal") or choice.get("finish_reason") == "content_filter"
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return None, "not a chat completion", None
    if refused:
        return None, "refused", usage
    if not isinstance(text, str) or not text.strip():
        return None, "empty", usage
    return text, "", usage


def _counts(usage: Any) -> tuple[int, int] | None:
    """Tokens of prompt and reply as the endpoint counted them; None where it did not."""
    if not isinstance(usage, dict):
        return None
    found = usage.get("prompt_tokens"), usage.get("completion_tokens")
    good = all(isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in found)
    return (int(found[0]), int(found[1])) if good else None  # type: ignore[arg-type]
