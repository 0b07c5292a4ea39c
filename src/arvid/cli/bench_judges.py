"""`arvid bench judges`: how well each judge of drafts agrees with the oracle, and what it costs.

Knows: arguments, judges that are lent to a family, files of results. Does not know: how drafts are made and judged
(`cli.drafting`), the statistics (`evals.judges`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from arvid.cli import options
from arvid.cli.eval import check_place

if TYPE_CHECKING:
    from arvid.pipeline import Family


def judges(
    prompts: Annotated[int, typer.Option(min=2, help="Held-out prompts.")] = 32,
    levels: Annotated[str, typer.Option(help="Levels of the prompt grammar: 1-2, or 1,3.")] = "1-2",
    seconds: options.Seconds = 5.0,
    draft_steps: Annotated[int, typer.Option(min=0, help="Passes of a draft; 0: as the family's card says.")] = 0,
    verify: Annotated[
        str, typer.Option(metavar="LIST", help="Noise levels at which the target looks at drafts.")
    ] = "0.05,0.2,0.4,0.6,0.8",
    good: Annotated[float, typer.Option(min=0.0, max=1.0, help="Oracle score from which a block is good.")] = 0.5,
    latent: Annotated[Path | None, typer.Option(metavar="DIR", help="A latent judge that the family lacks.")] = None,
    block: Annotated[Path | None, typer.Option(metavar="DIR", help="A block judge that the family lacks.")] = None,
    reading: Annotated[Path | None, typer.Option(metavar="DIR", help="A reading judge that the family lacks.")] = None,
    seed: options.Seed = 0,
    model: options.Model = "embedded",
    device: options.Device = "cpu",
    threads: options.Threads = 0,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the report here.")] = None,
    text_file: Annotated[Path | None, typer.Option("--markdown", metavar="FILE", help="Write the table here.")] = None,
    picture: Annotated[
        Path | None, typer.Option("--curves", metavar="FILE", help="Draw the calibration curves here, .svg.")
    ] = None,
) -> None:
    """Rank drafted blocks by every judge, against the oracle, on held-out prompts.

    Ctrl-C ends the run and reports the prompts it finished.
    """
    for path in filter(None, (json_file, text_file, picture)):
        check_place(path)
    # What is heavy is imported when it is needed: `arvid --help` answers at once.
    from arvid.cli import drafting, families
    from arvid.cli.bench import level_numbers
    from arvid.cli.report import as_json, leave, nothing
    from arvid.evals import judges as table
    from arvid.pipeline import Pipeline

    asked = drafting.Asked(
        prompts, level_numbers(levels), seconds, draft_steps, looking_levels(verify, "--verify"), good, seed
    )  # fmt: skip
    families.set_up(threads)
    family = families.open_pipeline(model, "", device).family
    report = drafting.run(Pipeline(_lent(family, {"latent": latent, "block": block, "reading": reading})), asked)
    if not report["rows"]:
        nothing("a prompt was finished")
    files = ((text_file, table.markdown), (picture, table.curves), (json_file, as_json))
    leave(report, files, lambda report: typer.echo(table.markdown(report), nl=False))


def _lent(family: Family, directories: dict[str, Path | None]) -> Family:
    """A family with judges of blocks that it lacks, by their names, from their directories; a reading judge rereads."""
    from dataclasses import replace

    from arvid.models.tae import TinyAutoencoder
    from arvid.rewards.judges import JUDGES, reread

    lent = {name: JUDGES[name].load(path).to(family.device) for name, path in directories.items() if path}
    encode = family.decoder.encode if isinstance(family.decoder, TinyAutoencoder) else None
    return replace(family, judges={**family.judges, **lent, **reread(lent, encode)})


def noise_levels(text: str, option: str) -> tuple[float, ...]:
    """0.2,0.8 as numbers. Raises ValueError unless all lie in [0, 1)."""
    try:
        found = tuple(dict.fromkeys(float(part) for part in text.split(",") if part))
    except ValueError as error:
        raise ValueError(f"{option} {text!r}; expected noise levels like 0.2,0.8") from error
    if not all(0 <= level < 1 for level in found):
        raise ValueError(f"{option} {text!r}; expected noise levels from 0 to below 1")
    return found


def looking_levels(text: str, option: str) -> tuple[float, ...]:
    """Noise levels at which the target looks at drafts. Raises ValueError for what is none."""
    found = noise_levels(text, option)
    if 0 in found:
        raise ValueError(f"{option} {text!r}; at 0 the target is shown the draft itself, expected above 0 to below 1")
    return found
