"""Messages of a live session, and the bodies of requests: their form, their bounds, what they mean for the engine.

Knows: names, types and limits of fields; how extras become a request of the pipeline. Does not know: sockets, routes,
what a control does.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from arvid.pipeline import Request
from arvid.rollout.timeline import RECACHE, WAYS, Entry
from arvid.serve.knobs import with_tau

LARGEST_SEED = 2**63 - 1
LARGEST = 1e9
"""Of any number; what is no number at all is not below it."""


def _plain(text: str) -> str:
    """Text that every database and file can hold."""
    if "\x00" in text or any(0xD800 <= ord(letter) <= 0xDFFF for letter in text):
        raise ValueError("holds a letter that is no text (NUL, or half of a pair); leave it out")
    return text


def _way(how: str) -> str:
    if how not in WAYS:
        raise ValueError(f"unknown transition {how!r}; known: {', '.join(WAYS)}")
    return how


Text = Annotated[str, Field(max_length=32000), AfterValidator(_plain)]
Filled = Annotated[str, Field(min_length=1, max_length=32000, pattern=r"\S"), AfterValidator(_plain)]
Spec = Annotated[str, Field(max_length=500), AfterValidator(_plain)]
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Second = Annotated[float, Field(ge=0, le=LARGEST)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Count = Annotated[int, Field(ge=0, le=10**6)]
Way = Annotated[str, Field(json_schema_extra={"enum": list(WAYS)}), AfterValidator(_way)]


class Strict(BaseModel):
    """A message without unknown fields."""

    model_config = ConfigDict(extra="forbid")


class Turn(Strict):
    """An entry of a timeline: from second `at` on the video shows `prompt`."""

    at: Second
    prompt: Filled
    how: Way = RECACHE
    blocks: Annotated[int, Field(ge=0, le=10**4)] = 3


class Extras(Strict):
    """What this engine can do beyond the API it is compatible with. `tau` is short for a router; `drafter: none` leaves
    everything to the target."""

    drafter: Spec | None = None
    router: Spec | None = None
    tau: Number | None = None
    memory: Spec | None = None
    positions: Spec | None = None
    guard: Spec | None = None
    noise: Spec | None = None
    timeline: Annotated[list[Turn], Field(max_length=1000)] | None = None
    seed: Seed | None = None

    def onto(self, request: Request, standard: str, drafters: tuple[str, ...]) -> Request:
        """A request with these extras. `standard` is the family's own router, `drafters` the names that its drafter
        goes by. Raises ValueError for extras that contradict each other."""
        router = request.router if self.router is None else self.router
        if self.drafter not in (None, "none", *drafters):
            raise ValueError(f"arvid.drafter {self.drafter!r}; loaded: {', '.join((*drafters, 'none'))}")
        if self.tau is not None and (self.router is not None or self.drafter == "none"):
            raise ValueError("arvid.tau is a router with a drafter; leave out arvid.router and drafter: none")
        if self.drafter == "none" and self.router is not None:
            raise ValueError("arvid.drafter none is router target; leave out arvid.router")
        if self.tau is not None:
            router = with_tau(router or standard, self.tau)
        if self.drafter == "none":
            router = "target"
        entries = tuple(Entry(turn.at, turn.prompt, turn.how, turn.blocks) for turn in self.timeline or ())
        return replace(
            request,
            router=router,
            past=request.past if self.memory is None else self.memory,
            positions=request.positions if self.positions is None else self.positions,
            guard=request.guard if self.guard is None else self.guard,
            noise=request.noise if self.noise is None else self.noise,
            timeline=entries,
            seed=request.seed if self.seed is None else self.seed,
        )


# ---------------------------------------------------------------- bodies of requests


class Picture(Strict):
    """A picture by reference: a data URL. Nothing is fetched from elsewhere."""

    image_url: str | None = None
    file_id: Text | None = None


class Source(Strict):
    """A finished video."""

    id: Text


class Create(Strict):
    """A video of a prompt."""

    prompt: Filled
    model: Text | None = None
    seconds: Second | None = None
    size: Text | None = None
    input_reference: Picture | None = None
    arvid: Extras = Extras()


class Remix(Strict):
    """A finished video once more, with another prompt: the same seed, the same settings."""

    prompt: Filled
    arvid: Extras = Extras()


class Extend(Strict):
    """A finished video, `seconds` longer."""

    prompt: Filled
    seconds: Second
    video: Source | None = None
    arvid: Extras = Extras()


class EditExtras(Extras):
    """Extras of an edit: from where on the video is made anew, by block or by second."""

    from_block: Count | None = None
    from_second: Second | None = None


class Edit(Strict):
    """A finished video with another prompt from a block on."""

    prompt: Filled
    video: Source | None = None
    arvid: EditExtras = EditExtras()


class Character(Strict):
    """A name that this server has no use for."""

    name: Text
    video: Source | None = None


# ---------------------------------------------------------------- messages of a live session


class Start(Strict):
    """Begin a session, or come back to one (`session`) and see it from second `at` on."""

    type: Literal["session.start"]
    id: Text = ""
    key: Text = ""
    session: Text = ""
    at: Second = 0.0
    prompt: Text = ""
    seconds: Second | None = None
    lead: Annotated[float, Field(gt=0, le=30)] = 3.0
    arvid: Extras = Extras()


class Prompt(Strict):
    """Show something else: from the next block that is made, or (`now`) from the next one that is shown."""

    type: Literal["prompt"]
    id: Text = ""
    prompt: Filled
    how: Way = RECACHE
    blocks: Annotated[int, Field(ge=0, le=10**4)] = 3
    now: bool = False


class Pause(Strict):
    """Make nothing until `play`."""

    type: Literal["pause"]
    id: Text = ""


class Play(Strict):
    """Go on."""

    type: Literal["play"]
    id: Text = ""


class Rewind(Strict):
    """Go back to before a block."""

    type: Literal["rewind"]
    id: Text = ""
    block: Count


class Branch(Strict):
    """Go back to before a block and on from there with another prompt, another seed, or both."""

    type: Literal["branch"]
    id: Text = ""
    block: Count
    prompt: Text = ""
    seed: Seed | None = None
    how: Way = RECACHE


class Knob(Strict):
    """Quality against speed: a threshold, a frame rate to hold, or any router."""

    type: Literal["knob"]
    id: Text = ""
    tau: Number | None = None
    fps: Annotated[float, Field(gt=0, le=1000)] | None = None
    router: Spec | None = None

    @model_validator(mode="after")
    def _one(self) -> Knob:
        if sum(value is not None for value in (self.tau, self.fps, self.router)) != 1:
            raise ValueError("give one of tau, fps and router")
        return self


class Seek(Strict):
    """See what is shown at a second."""

    type: Literal["seek"]
    id: Text = ""
    second: Second


class Ack(Strict):
    """The playhead is at a second."""

    type: Literal["ack"]
    second: Second


class Stop(Strict):
    """End the session."""

    type: Literal["stop"]
    id: Text = ""


class Ping(Strict):
    """Answer me."""

    type: Literal["ping"]
    id: Text = ""


Control = Prompt | Pause | Play | Rewind | Branch | Knob | Seek
Message = Annotated[
    Start | Prompt | Pause | Play | Rewind | Branch | Knob | Seek | Ack | Stop | Ping, Field(discriminator="type")
]
MESSAGES: TypeAdapter[Any] = TypeAdapter(Message)
