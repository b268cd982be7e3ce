"""Live: type a text and see what happens in the model as it reads it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from assay.app.arguments import integer, string
from assay.app.blocks import text
from assay.app.documents import Made, page
from assay.app.forms import form_of

if TYPE_CHECKING:
    from assay.app.workspace import Workspace


@page("live", "Live", "Type a text: the features that fire at each token, where heads look, what would come next.",
      group="Model", text=string("The text.", longest=4000), dictionary=string("Whose latents.", longest=400),
      site=string("Neurons of this site instead, mlp_act.L.", longest=100),
      heads=string("Heads, such as 3.1,5.0", longest=400),
      features=integer("How many features are shown.", 12, 1, 60))  # fmt: skip
def live(workspace: "Workspace", arguments: Mapping[str, Any]) -> Made:
    """The form; with a text in the address it runs at once."""
    if workspace.model is None:
        return Made([text("live-empty", "No model was named. Start again with: assay app --model MODEL")], empty=True)
    if "dictionary" in arguments:
        workspace.dictionary_row(arguments["dictionary"])
    known = [row["name"] for row in workspace.dictionaries()]
    values = {key: arguments[key] for key in ("text", "dictionary", "site", "heads", "features") if key in arguments}
    ask = form_of("live-form", "live", "Read it", ("text", "dictionary", "site", "heads", "features"),
                  values={"text": "The cat sat on the mat.", **values}, choices={"dictionary": ["", *known]} if known else {},
                  auto="text" in arguments, page="live", help="feature",
                  note="What you type is a look: claims whose sealed data hold the same text become exploratory.")  # fmt: skip
    return Made([ask])
