"""What the weights behind a site read of it, where one matrix M (d, out) stands behind it.

    mlp_act.L            the MLP's last projection
    resid_post.(last)    the final norm's gain (and its centring) and the unembedding

The column space of M is what can matter later by itself; what is orthogonal to it cannot. It is taken from the eigenvectors of
M M^T whose singular value is above `LEAST` of the largest.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from assay.errors import SiteError
from assay.model.model import Model
from assay.model.readers import affine
from assay.sites import Site

LEAST = 1e-3


@torch.no_grad()
def read_space(model: Model, site: Site) -> Float[Tensor, "rank d"] | None:
    """An orthonormal basis of what is read of a site; None where no single matrix is known to read it."""
    weight = _matrix(model, site)
    if weight is None:
        return None
    weight = weight.double()
    sizes, vectors = torch.linalg.eigh(weight @ weight.T)
    return vectors.T[sizes > LEAST**2 * sizes[-1]].float()


def read_part(basis: Float[Tensor, "k d"], space: Float[Tensor, "rank d"]) -> Float[Tensor, "k2 d"]:
    """An orthonormal basis of the projection of one subspace on another: k2 <= k rows, none where they are orthogonal."""
    _, sizes, rows = torch.linalg.svd((basis @ space.T @ space).double(), full_matrices=False)
    return rows[sizes > LEAST].float()


@torch.no_grad()
def _matrix(model: Model, site: Site) -> Float[Tensor, "d out"] | None:
    """The matrix that reads a site."""
    if site.name == "mlp_act":
        path = model.layout.blocks[site.layer or 0].down
        return None if path is None else affine(model.hf.get_submodule(path), (model.feature_shape(site) or (0,))[0])[0]
    if site.name != "resid_post" or site.layer != model.n_layers - 1:
        return None
    try:
        norm = model.readers().norm(Site("logits"))
    except SiteError:
        return None
    weight = norm.gain[:, None] * affine(model.hf.get_submodule(model.layout.unembed), model.dims.d_model)[0].float()
    return weight - weight.mean(0) if norm.centred else weight
