"""Write the fixtures of tests/test_dictionary_formats.py: dictionaries saved by the peers, and what the peers make of inputs.

    .venv-peers/bin/python tests/with_peers/make_fixtures.py

Each case is a folder as the peer writes it, with `expected.safetensors` beside its files: inputs, latents, reconstruction.
"""

import shutil
from pathlib import Path

from made_by_peers import CASES, D, inputs
from safetensors.torch import save_file

TO = Path(__file__).parent.parent / "fixtures" / "dictionaries"


def main() -> None:
    for peer, cases in CASES.items():
        shutil.rmtree(TO / peer, ignore_errors=True)
        for name, write, run in cases():
            folder, x = TO / peer / name, inputs(D)
            write(folder)
            latents, rebuilt = run(folder, x)
            found = {"inputs": x, "latents": latents.contiguous(), "reconstruction": rebuilt.contiguous()}
            save_file(found, folder.with_name(f"{name}.expected.safetensors"))


if __name__ == "__main__":
    main()
