# SPDX-License-Identifier: Apache-2.0
"""The verbs `card` and `push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scrd_fast.console import Console
from scrd_fast.options import OwnRun
from scrd_fast.verbs import verb

__all__ = ["card", "push"]


@verb
def card(
    console: Console,
    run: OwnRun,
    *,
    evaluations: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[EVALUATION]...", help="Folders that `evaluate` wrote, one of each data set."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Markdown file for the card.")],
    names: Annotated[
        bool, typer.Option("--names", help="Name the files of the worst failures: public data only.")
    ] = False,
    licence: Annotated[
        str | None, typer.Option("--licence", metavar="ID", help="Of the weights, as the hub names it: apache-2.0.")
    ] = None,
) -> None:
    """Write the model's card, of what its run and its evaluations say: data, settings, results, failures, licences."""
    from scrd_fast.card import make_card
    from scrd_fast.files import write_atomically

    write_atomically(out, make_card(run, evaluations or [], names=names, licence=licence).encode())
    console.result(out, {"card": str(out), "evaluations": [str(folder) for folder in evaluations or []]})


@verb
def push(
    console: Console,
    run: OwnRun,
    repo_id: Annotated[str, typer.Argument(metavar="USER/MODEL", help="Its name on the hub.")],
    card: Annotated[Path, typer.Option("--card", metavar="FILE", help="What the verb `card` wrote.")],
    public: Annotated[bool, typer.Option("--public", help="Let everybody see a new repository.")] = False,
    branch: Annotated[str | None, typer.Option("--branch", help="Of the repository; default: main.")] = None,
) -> None:
    """Publish model, calibration and card on the Hugging Face Hub. The token is that of `hf auth login` or HF_TOKEN."""
    from scrd_fast.hub import no_bars_in_files
    from scrd_fast.screening.screener import load

    no_bars_in_files()
    model, calibration = load(run)
    url = model.push_to_hub(
        repo_id,
        calibration=calibration,
        card=card.read_text(encoding="utf-8"),
        private=not public,
        branch=branch,
    )
    console.result(url, {"commit": url})
