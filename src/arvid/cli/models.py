"""`arvid models`: look at checkpoints, turn them into the form that arvid writes, and take the mean of several.

Knows: arguments and lines of text. Does not know: how checkpoints are read (`arvid.models.checkpoints`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from arvid.models.checkpoints.describing import Facts

app = typer.Typer(
    help="Look at checkpoints of Wan transformers, convert them, and take means of weights.", no_args_is_help=True
)

Source = Annotated[str, typer.Argument(metavar="PATH", help="A file, a directory, or a Hugging Face id (owner/name).")]
Family = Annotated[str, typer.Option("--family", metavar="NAME", help="The family, where the file does not tell it.")]
Heads = Annotated[int, typer.Option("--heads", min=0, help="Attention heads of a model of no published width.")]
Loras = Annotated[
    list[str] | None, typer.Option("--lora", metavar="PATH", help="An adapter to merge; repeat for more.")
]


@app.callback()
def models() -> None:
    """Look at checkpoints of Wan transformers, convert them, and take means of weights."""


@app.command("inspect")
def inspect(
    path: Source,
    family: Family = "",
    heads: Heads = 0,
    lora: Loras = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a checkpoint is: family, size, step list, licence, and what it goes together with.

    Reads names and shapes, not weights. Nothing is decided by the name of a file.
    """
    from arvid.models.checkpoints.describing import describe
    from arvid.models.checkpoints.reading import look

    facts = describe(look(path, family, heads, lora or ()))
    for line in [json.dumps(facts, indent=2)] if as_json else told(facts):
        typer.echo(line)


@app.command("convert")
def convert(
    path: Source,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="A new directory.")],
    family: Family = "",
    heads: Heads = 0,
    lora: Loras = None,
) -> None:
    """Write a checkpoint as safetensors under the original names, with its sizes beside it; weights stay bit by bit."""
    from arvid.models.checkpoints.reading import open_checkpoint
    from arvid.models.checkpoints.writing import convert as write

    for file in write(open_checkpoint(path, family, heads, lora or ()), output):
        typer.echo(str(output / file.name))


@app.command("mean")
def mean(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Two or more safetensors of one model.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="A new .safetensors.")],
    shares: Annotated[str, typer.Option("--shares", metavar="A,B,...", help="A share for each; equal without.")] = "",
) -> None:
    """Write the mean of the weights of several runs that began alike."""
    from safetensors.torch import save_file

    from arvid.cli.places import file_for, whole
    from arvid.models import averaging

    file_for(output, ".safetensors", "-o")
    if output.exists():
        raise ValueError(f"-o {output} exists; name a new file")
    try:
        numbers = [float(share) for share in shares.split(",") if share]
    except ValueError as error:
        raise ValueError(f"--shares {shares!r}; expected numbers like 1,1,2") from error
    found = averaging.mean(paths, numbers)
    with whole(output) as part:
        save_file(found, part, averaging.told(paths))
    typer.echo(str(output))


def told(facts: Facts) -> list[str]:
    """Facts as aligned lines."""
    rows = _transformer(facts) if facts["kind"] == "transformer" else _lora(facts)
    wide = max(len(name) for name, _ in rows)
    return [f"{name:<{wide}}  {value}" for name, value in rows]


def _transformer(facts: dict[str, Any]) -> list[tuple[str, str]]:
    config, families = facts["config"], facts["families"]
    rows = [
        ("path", facts["path"]),
        ("family", " or ".join(family["name"] for family in families)),
        ("layout", f"{facts['layout']} names" + (f", from {facts['part']}" if facts["part"] else "")),
        ("parameters", f"{facts['parameters'] / 1e9:.3f} billion"),
        ("dtype", ", ".join(f"{dtype} ({count} tensors)" for dtype, count in facts["dtypes"].items())),
        ("size", f"{facts['bytes'] / 1e9:.2f} GB"),
        ("sizes", f"{config['dim']} wide, {config['num_layers']} layers, {config['num_heads']} heads, feed-forward "
                  f"{config['ffn_dim']}, latents {config['in_dim']}, text {config['text_len']} x {config['text_dim']}"),
    ]  # fmt: skip
    for family in families:
        name = "steps" if len(families) == 1 else f"steps of {family['name']}"
        rows.append((name, _steps(family)))
        rows += [("router", family["router"])] if family["router"] != "target" else []
        rows += [("note", family["note"])] if family["note"] else []
    rows += [("merged", f"{lora['path']} ({_rank(lora)})") for lora in facts["loras"]]
    rows.append(("licence", facts["licence"] or "not said by the files; see where they come from"))
    pairs = [f"{pair['family']} as its {pair['role']}" for pair in facts["pairs"]]
    rows.append(("pairs with", ", ".join(pairs) or "no published model of another size"))
    return rows


def _steps(family: dict[str, Any]) -> str:
    if not family["timesteps"]:
        return "none: not a few-step causal model"
    steps = ", ".join(f"{timestep:g}" for timestep in family["timesteps"])
    return f"{steps} (shift {family['shift']:g}), blocks of {family['block']} latent frames, past {family['past']}"


def _lora(facts: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("path", facts["path"]),
        ("kind", "LoRA" + (f", from {facts['part']}" if facts["part"] else "")),
        ("naming", facts["naming"]),
        ("rank", _rank(facts)),
        ("parameters", f"{facts['parameters'] / 1e6:.2f} million"),
        ("pairs with", "the transformer it was trained on: give that one, and this as --lora"),
    ]


def _rank(facts: dict[str, Any]) -> str:
    return f"rank {', '.join(map(str, facts['ranks']))}, {facts['tensors']} tensors"
