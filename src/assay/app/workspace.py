"""`Workspace`: what pages and verbs work on. One atlas, at most one model at a time, one role, one name for the log.

1. Nothing is read before it is needed; a model and its dictionaries are loaded once.
2. A model is used by one thread at a time: `with workspace.using() as model: ...`.
3. Which models may be named: the one the workspace was opened with, and packaged ones. What a page or an agent asks for never
   makes this program fetch something from a hub or read a folder of its choosing.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from assay import permissions
from assay.app.disclosed import use
from assay.app.views import Views
from assay.atlas.database import FILE, HEAD
from assay.atlas.store import Atlas
from assay.errors import AssayError, bad_argument, missing
from assay.permissions import Grant

if TYPE_CHECKING:
    from assay.atlas.mapped import Mapped
    from assay.features.dictionary import Dictionary
    from assay.model.model import Model


T = TypeVar("T")
PATIENCE = 30.0  # seconds to wait for the model
KEPT = 128  # answers about the ledger that are remembered


class Busy(AssayError):
    """The model is in use."""


class Workspace:
    """One atlas with one model. `role`: what may be done; `actor`: who is written into the audit log beside the system's user.

    `loaded`: a model that is already there (in a notebook, a test); its name is then the workspace's model.
    """

    def __init__(
        self, atlas: str | Path = "./atlas", model: str | None = None, role: str = "read", actor: str = "app", *,
        device: str = "cpu", dtype: str = "float32", loaded: "Model | None" = None,
    ) -> None:  # fmt: skip
        if role not in permissions.ROLES:
            raise bad_argument("role", role, ", ".join(permissions.ROLES))
        self.atlas, self.role, self.actor = Path(atlas), role, actor
        self.model = loaded.name if loaded is not None else model
        self.device, self.dtype = device, dtype
        self.lock = threading.RLock()
        self._loaded: Model | None = loaded
        self._loaded_as = self.model if loaded is not None else None
        self._dictionaries: dict[str, Dictionary] = {}
        self._mapped: Mapped | None = None
        self._known: OrderedDict[Any, tuple[tuple[int, ...] | None, Any]] = OrderedDict()
        self._knowing = threading.Lock()
        self.views = Views(lambda body: self.log("pages viewed", body))

    # atlas -----------------------------------------------------------------------------------

    @property
    def store(self) -> Atlas:
        """Claims and ledger."""
        return Atlas(self.atlas)

    @property
    def mapped(self) -> "Mapped":
        """Feature sets that were mapped."""
        if self._mapped is None:
            from assay.atlas.mapped import Mapped

            self._mapped = Mapped(self.store)
        return self._mapped

    @property
    def is_empty(self) -> bool:
        """Whether there is no atlas yet."""
        return not (self.atlas / FILE).is_file()

    def counts(self) -> dict[str, int]:
        """Stated, tested and decided claims: the ledger's tally, on every page."""
        return dict(self.known("counts", self.store.tally))

    def known(self, about: Any, find: Callable[[], T]) -> T:
        """What `find` says of claims and ledger; what it said before, as long as the database's files are the same.

        `about`: what is asked, hashable. What is returned is shared: it is read, not changed.
        """
        stamp = self._stamp()
        with self._knowing:
            held = self._known.get(about)
        if held is not None and stamp is not None and held[0] == stamp:
            return held[1]
        found = find()
        with self._knowing:
            self._known[about] = (stamp, found)
            self._known.move_to_end(about)
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
        return found

    def _stamp(self) -> tuple[int, ...] | None:
        """What changes with the database's files; None where there is none."""
        try:
            found = [(self.atlas / name).stat() for name in (FILE, HEAD)]
        except OSError:
            return None
        return tuple(number for each in found for number in (each.st_mtime_ns, each.st_size, each.st_ino))

    @contextmanager
    def reading(self) -> Iterator[None]:
        """One opening of the database for all that is read inside; nothing where there is no atlas."""
        if self.is_empty:
            yield
            return
        with self.store:
            yield

    # models ----------------------------------------------------------------------------------

    def model_name(self, name: str | None = None) -> str:
        """The model that is meant: `name`, else the workspace's own. Raises UsageError for none, or one that is not offered."""
        wanted = name or self.model
        if not wanted:
            raise bad_argument("model", None, ", ".join(self.models()), "Name one, or start with --model MODEL.")
        if wanted not in self.models():
            raise bad_argument("model", wanted, ", ".join(self.models()), "For another, start with --model MODEL.")
        return wanted

    def models(self) -> list[str]:
        """Names of the models that may be used: the workspace's own first, then packaged ones."""
        from assay.model.packaged import PACKAGED

        return list(dict.fromkeys([*([self.model] if self.model else []), *PACKAGED]))

    @contextmanager
    def using(self, name: str | None = None) -> Iterator["Model"]:
        """A model for this thread alone, loaded when it is not the one that is there. Only one is kept.

        Raises `Busy` where another thread has used it for more than `PATIENCE` seconds.
        """
        if not self.lock.acquire(timeout=PATIENCE):
            raise Busy("the model is busy with another job. Wait until that is done, or cancel it; then ask again.")
        try:
            yield self.load(name)
        finally:
            self.lock.release()

    def load(self, name: str | None = None) -> "Model":
        """The model itself; call it inside `using`, or where nothing else runs."""
        wanted = self.model_name(name)
        with self.lock:
            if self._loaded is None or self._loaded_as != wanted:
                from assay.model.load import load_model

                self._loaded = None  # two at once may not fit
                self._loaded = load_model(wanted, device=self.device, dtype=self.dtype)
                self._loaded_as = wanted
            use(self._loaded)
            return self._loaded

    # dictionaries ----------------------------------------------------------------------------

    def dictionaries(self, model: str | None = None) -> list[dict[str, Any]]:
        """{"name", "digest", "folder", "model", "spec"} of kept dictionaries: the atlas's, then those shipped for the model."""
        from assay.atlas.features import dictionaries
        from assay.features.kept import JSON, SHIPPED, read_record

        found = {row["digest"]: {key: row[key] for key in ("name", "digest", "folder", "model", "spec")}
                 for row in dictionaries(self.store)}  # fmt: skip
        name = model or self.model
        for path in sorted((SHIPPED / name).glob(f"**/{JSON}")) if name in self.models() and name else []:
            record = read_record(path.parent)
            found.setdefault(record["digest"], {"name": record["name"], "digest": record["digest"], "model": name,
                                                "folder": str(path.parent), "spec": dict(record["spec"])})  # fmt: skip
        return list(found.values())

    def dictionary_row(self, name: str) -> dict[str, Any]:
        """What is known of a kept dictionary by name or digest. Raises MissingError for another."""
        rows = self.dictionaries()
        for row in rows:
            if name in (row["name"], row["digest"]):
                return row
        there = ", ".join(row["name"] for row in rows) or "none is kept"
        raise missing("dictionary", name, there, "See: assay dictionary list")

    def dictionary(self, name: str) -> "Dictionary":
        """A kept dictionary by name or digest, open for `latent.NAME` sites and for claims. Raises UsageError for another."""
        from assay.evidence.dictionaries import opened
        from assay.features.formats import load_dictionary
        from assay.features.opened import open_latents

        row = self.dictionary_row(name)
        with self.lock:
            if row["digest"] not in self._dictionaries:
                found = load_dictionary(row["folder"])
                opened(found)
                if found.spec.inputs:
                    open_latents(found)
                self._dictionaries[row["digest"]] = found
            return self._dictionaries[row["digest"]]

    # permission and log ----------------------------------------------------------------------

    def require(self, role: str, reason: str | None = None) -> Grant:
        """The grant that an action needs. Raises UsageError for a role that is too low, or *modify* without a reason."""
        return permissions.require(role, reason=reason, granted=self.role)

    def allows(self, role: str) -> bool:
        """Whether the workspace's role has the rights of `role`."""
        return permissions.ROLES.index(self.role) >= permissions.ROLES.index(role)

    def viewed(self, page: str, params: Mapping[str, Any]) -> None:
        """A page was shown to somebody; written to the audit log a little later (`views`)."""
        if not self.is_empty:
            self.views.note(page, params)

    def log(self, action: str, body: Mapping[str, Any], grant: Grant | None = None) -> None:
        """One entry in the atlas's audit log. Raises StoreError or TamperedError when it cannot be written."""
        permissions.record(self.atlas, action, {"actor": self.actor, **body}, grant)
