"""Bodies of requests: JSON or multipart, read once and checked, and how they are described.

Knows: two forms of the same body, `name[part]` in forms, one file. Does not know: what is asked for.
"""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile

from arvid.serve.refusals import Refused

Body = TypeVar("Body", bound=BaseModel)
FIELDS = 200
"""Most fields of a form."""
NAME = re.compile(r"([^\[\]]+)((?:\[[^\[\]]+\])*)")
MULTIPART = "multipart/form-data"


def described(body: type[BaseModel], file: str = "") -> dict[str, Any]:
    """How a route with this body describes it; `file` names the field that may be a file instead."""
    schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    form = {**schema, "properties": dict(schema["properties"])}
    if file:
        form["properties"][file] = {"type": "string", "format": "binary"}
    content = {"application/json": {"schema": schema}, **({MULTIPART: {"schema": form}} if file else {})}
    return {"requestBody": {"required": True, "content": content}}


def definitions(bodies: list[type[BaseModel]]) -> dict[str, Any]:
    """Parts of bodies that `described` refers to."""
    found: dict[str, Any] = {}
    for body in bodies:
        found.update(body.model_json_schema(ref_template="#/components/schemas/{model}").get("$defs", {}))
    return found


async def read(request: Request, body: type[Body], file: str = "") -> tuple[Body, bytes | None]:
    """The body of a request, and the file in the field `file`. Raises Refused naming the field that is wrong."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    upload: bytes | None = None
    if kind == MULTIPART:
        found, upload = await _form(request, file)
    elif kind in ("application/json", ""):
        found = _json(await request.body(), "the body")
    else:
        raise Refused(f"content type {kind!r}; send application/json or {MULTIPART}", 415)
    return check(body, found), upload


def check(body: type[Body], found: Any) -> Body:
    """The body of plain data. Raises Refused naming the first field that is wrong."""
    try:
        return body.model_validate(found)
    except ValidationError as error:
        raise wrong(error) from error


def wrong(error: ValidationError) -> Refused:
    """What a client is told about the first field that is wrong."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = ".".join(str(part) for part in first["loc"]) or None
    return Refused(f"{param or 'the body'}: {first['msg']}", code="invalid_value", param=param)


def _json(text: bytes | str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused(f"{what} is no JSON ({error}); send an object", code="invalid_json") from error


async def _form(request: Request, file: str) -> tuple[dict[str, Any], bytes | None]:
    found: dict[str, Any] = {}
    upload: bytes | None = None
    async with request.form(max_files=1, max_fields=FIELDS) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name != file:
                    raise Refused(f"a file in the field {name!r}; it belongs into {file or 'no field'}", param=name)
                upload = await value.read()
            else:
                _put(found, name, value)
    if isinstance(extras := found.get("arvid"), str):
        found["arvid"] = _json(extras, "arvid")
    return found, upload


def _put(found: dict[str, Any], name: str, value: str) -> None:
    """Set `a[b][c]` of nested dictionaries."""
    match = NAME.fullmatch(name)
    if not match:
        raise Refused(f"field {name!r} is no name[part]; send lists as JSON: arvid={{...}}", param=name)
    path = [match[1], *re.findall(r"\[([^\[\]]+)\]", match[2])]
    for part in path[:-1]:
        found = found.setdefault(part, {})
        if not isinstance(found, dict):
            raise Refused(f"field {name!r} is both a value and an object; send one of them", param=name)
    if path[-1] in found:
        raise Refused(f"field {name!r} comes twice; send it once", param=name)
    found[path[-1]] = value
