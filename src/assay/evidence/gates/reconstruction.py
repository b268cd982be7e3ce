"""Reconstruction: how much of the activations, and of what the model does with them, is kept?

1. Variance: 1 - squared error / variance on tune, per example. Necessary for every use, sufficient for none.
2. Behaviour: how well the host does with the reconstruction in place, between what it does with the tune mean
   (0) and with its own activations (1). For a language model, log-probability of the next token: the share of
   cross-entropy recovered. Required for standing in the loss.
3. Error node: the reconstruction plus another example's error; what is kept of the behaviour must be above .8.
   Required for steering and for standing in the loss: where it fails, the story is in the error.
4. A planted truth and a planted falsehood: activations themselves explain everything, their mean nothing.
"""

from assay.evidence.dictionaries import USES, behaves, for_use
from assay.evidence.gates.base import Columns, Contrast, Gate, Table, column, difference, mean, register
from assay.records import GatePlan

KINDS = ("reconstructs",)
_, STEERING, LOSS = USES


def measure_variance(instrument, gate: GatePlan) -> Columns:
    """Explained variance of every example."""
    return {"explained": instrument.explained(instrument.reconstruction)}


def measure_behaviour(instrument, gate: GatePlan) -> Columns:
    """The behaviour with the site as it is, rebuilt, and at its mean."""
    if not behaves(instrument.host):
        return {}
    return {"behaves": instrument.behaviour(None), "behaves.mean": instrument.behaviour(instrument.ablated),
            "behaves.rebuilt": instrument.behaviour(instrument.rebuilt)}  # fmt: skip


def measure_error(instrument, gate: GatePlan) -> Columns:
    """The behaviour with the site as it is, with another error, and at its mean."""
    if not behaves(instrument.host):
        return {}
    return {"behaves": instrument.behaviour(None), "behaves.mean": instrument.behaviour(instrument.ablated),
            "behaves.other_error": instrument.behaviour(instrument.resampled)}  # fmt: skip


def measure_planted(instrument, gate: GatePlan) -> Columns:
    """Explained variance of the activations themselves, and of their mean."""
    return {"planted.itself": instrument.explained(instrument.acts),
            "planted.mean": instrument.explained(instrument.ablated(instrument.acts))}  # fmt: skip


def variance(table: Table, gate: GatePlan) -> Contrast:
    """Explained variance."""
    return Contrast(list(column(table, "explained")))


def _kept(name: str):
    def contrast(table: Table, gate: GatePlan) -> Contrast:
        size = mean(column(table, "behaves")) - mean(column(table, "behaves.mean"))
        if size <= 0:
            raise KeyError("the site does not matter for the behaviour")
        return Contrast(difference(column(table, name), column(table, "behaves.mean"), size))

    return contrast


def kept_with_other_error(table: Table, gate: GatePlan) -> Contrast:
    """1 - the drop, in units of what the mean costs."""
    size = mean(column(table, "behaves")) - mean(column(table, "behaves.mean"))
    if size <= 0:
        raise KeyError("the site does not matter for the behaviour")
    drops = difference(column(table, "behaves"), column(table, "behaves.other_error"), size)
    return Contrast([None if drop is None else 1 - drop for drop in drops])


def itself(table: Table, gate: GatePlan) -> Contrast:
    """Explained by the activations themselves."""
    return Contrast(list(column(table, "planted.itself")))


def nothing(table: Table, gate: GatePlan) -> Contrast:
    """1 - explained by the mean."""
    return Contrast([None if value is None else 1 - value for value in column(table, "planted.mean")])


register(Gate("variance", "reconstruction", KINDS, 0.6, True, measure_variance, variance,
              says="it explains {estimate} of the variance"))  # fmt: skip
register(Gate("behaviour.kept", "reconstruction", KINDS, 0.8, for_use(LOSS), measure_behaviour, _kept("behaves.rebuilt"),
              says="{estimate} of the behaviour is kept with the reconstruction in place"))  # fmt: skip
register(Gate("error_node", "error_node", KINDS, 0.8, for_use(STEERING, LOSS), measure_error, kept_with_other_error,
              says="{estimate} of the behaviour is kept with another error"))  # fmt: skip
register(Gate("planted.itself", "instrument", KINDS, 0.95, False, measure_planted, itself))
register(Gate("planted.mean", "instrument", KINDS, 0.5, False, measure_planted, nothing))
