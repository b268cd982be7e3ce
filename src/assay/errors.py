"""Errors that a person can act on.

Every mistake a user can make ends in one of these, printed without a traceback:

    AssayError
    ├── UsageError        a wrong argument: which one, what was got, what is allowed, what to do next
    │   ├── MissingError  a name of something that there is not
    │   ├── SiteError     an address that is not a site, or not one of this model
    │   └── ShapeError    a tensor that does not fit the site it is written to
    ├── ModelError        a model that cannot be found, read or fetched
    │   └── LayoutError   a model whose layout could not be proved
    ├── TaskError         a task or concept that cannot be read or used with this model
    ├── CorpusError       a corpus that cannot be found, read or fetched
    ├── EvidenceError     a claim, plan or ledger that does not hold
    │   ├── TamperedError     stored records that do not follow from each other (exit code 3)
    │   └── ReproduceError    a claim that cannot be measured here: another model or other data (4)
    ├── StoreError        an atlas that cannot be opened, read or written
    │   └── MissingRecord     a record that is not in the atlas
    └── NeedsExtra        a part of Assay whose optional packages are not installed
"""


class AssayError(Exception):
    """Base of all errors Assay raises on purpose."""

    exit_code = 2


class UsageError(AssayError):
    """A wrong argument."""


class MissingError(UsageError):
    """A name of something that there is not."""


class SiteError(UsageError):
    """An address that is not a site, or not one of this model."""


class ShapeError(UsageError):
    """A tensor that does not fit where it is written."""


class LengthError(UsageError):
    """A prompt that is longer than a model can read."""


class ModelError(AssayError):
    """A model that cannot be found, read or fetched."""


class LayoutError(ModelError):
    """A model whose layout could not be proved."""


class TaskError(AssayError):
    """A task that cannot be read, or not be used with this model."""


class CorpusError(AssayError):
    """A corpus that cannot be found, read or fetched."""


class EvidenceError(AssayError):
    """A claim, plan or ledger that does not hold."""


class TamperedError(EvidenceError):
    """Stored records that do not follow from each other."""

    exit_code = 3


class ReproduceError(EvidenceError):
    """A claim that cannot be measured here: another model, or other data."""

    exit_code = 4


class StoreError(AssayError):
    """An atlas that cannot be opened, read or written."""


class MissingRecord(StoreError):
    """A record that is not in the atlas."""


class PlanWarning(UserWarning):
    """What a careful person would change in a plan that is being locked."""


class NeedsExtra(AssayError):
    """An optional part whose packages are missing."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs optional packages. Install them: pip install 'assay[{extra}]'")


def bad_argument(argument: str, got: object, allowed: str, hint: str = "") -> UsageError:
    """The one sentence every wrong argument gets: argument, got, allowed, next step."""
    return UsageError(f"{argument}: got {got!r}; allowed: {allowed}." + (f" {hint}" if hint else ""))


def missing(argument: str, got: object, there: str, hint: str = "") -> MissingError:
    """The same sentence for a name of something that there is not; `there`: what there is."""
    return MissingError(str(bad_argument(argument, got, there, hint)))
