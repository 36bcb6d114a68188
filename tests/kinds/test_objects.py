"""What a declared object accepts and refuses, and the schema that it has."""

from __future__ import annotations

from typing import Annotated, Any

import jsonschema
import msgspec
import pytest

from cluster.config.request_limits import Limits
from cluster.errors import InvalidRequest, MalformedBody, UnsupportedParameter
from cluster.kinds.containers import ByJsonType, ListOf
from cluster.kinds.kind import Limit
from cluster.kinds.objects import Inline, Object, Variants
from cluster.kinds.scalars import Boolean, Choice, Integer, Number, Text

LIMITS = Limits(max_n=3)


class Circle(msgspec.Struct, frozen=True, kw_only=True):
    shape: Annotated[str, Choice({"circle": "circle"}), "The shape."]
    radius: Annotated[float, Number(0, 9, is_low_open=True), "Its radius."]


class Square(msgspec.Struct, frozen=True, kw_only=True):
    shape: Annotated[str, Choice({"square": "square"}), "The shape."]
    side: Annotated[int, Integer(1, 9), "Its side."] = 1


class Colours(msgspec.Struct, frozen=True, kw_only=True):
    is_bright: Annotated[bool, Boolean(), "Whether it is bright."] = False
    hue: Annotated[str | None, Text(8), "Its hue."] = None


SHAPES = Variants("shape", {"circle": Object(Circle), "square": Object(Square)})


class Drawing(msgspec.Struct, frozen=True, kw_only=True):
    """A body with everything that a declaration can have."""

    colours: Annotated[Colours, Inline()]
    title: Annotated[
        str, ByJsonType({str: Text(8, empty="is empty"), bool: Boolean()}, "a name or a switch"), ""
    ]
    num_copies: Annotated[int, Integer(-Limit("max_n"), Limit("max_n")), "Copies."] = msgspec.field(
        default=1, name="copies"
    )
    shapes: Annotated[tuple[Circle | Square, ...], ListOf(SHAPES), "What is drawn."] = ()
    filled_by_the_parser: int = 7


DRAWING = Object(Drawing, ignored=("note",), unsupported={"depth": (2, 2.0), "paper": ()})


def read(**body: Any) -> Drawing:
    return DRAWING.read("", body, LIMITS)


def test_a_body_becomes_its_struct() -> None:
    shapes = [{"shape": "circle", "radius": 2}, {"shape": "square"}]
    drawing = read(title="t", hue="red", copies=-3, shapes=shapes, note=object, depth=2.0, paper=None)
    assert drawing == Drawing(
        title="t",
        colours=Colours(hue="red"),
        num_copies=-3,
        shapes=(Circle(shape="circle", radius=2.0), Square(shape="square")),
    )


def test_a_null_counts_as_left_out() -> None:
    assert read(title="t", copies=None, hue=None, shapes=None) == Drawing(title="t", colours=Colours())


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        pytest.param({}, "title: is required", "title", id="missing"),
        pytest.param({"title": None}, "title: is required", "title", id="null"),
        pytest.param({"title": 3}, "title: 3 is not a name or a switch", "title", id="json-type"),
        pytest.param({"title": ""}, "title: is empty", "title", id="empty"),
        pytest.param({"title": "t", "copies": 4}, "copies: 4 is outside [-3, 3]", "copies", id="limit"),
        pytest.param({"title": "t", "num_copies": 1}, "num_copies: is not a parameter that this server knows;"
                     " did you mean copies?", "num_copies", id="name-in-python"),
        pytest.param({"title": "t", "huee": 1}, "huee: is not a parameter that this server knows;"
                     " did you mean hue?", "huee", id="near-miss-of-an-inlined-field"),
        pytest.param({"title": "t", "filled_by_the_parser": 1},
                     "filled_by_the_parser: is not a parameter that this server knows",
                     "filled_by_the_parser", id="without-a-kind"),
        pytest.param({"title": "t", "paper": 0}, "paper: 0 is not supported by this server", "paper",
                     id="unsupported"),
        pytest.param({"title": "t", "depth": True}, "depth: true is not supported by this server", "depth",
                     id="unsupported-of-another-type"),
        pytest.param({"title": "t", "shapes": [{"shape": "circle", "radius": 0}]},
                     "shapes[0].radius: 0 is outside (0, 9]", "shapes[0].radius", id="nested"),
        pytest.param({"title": "t", "shapes": [{"shape": "square"}, {"shape": "star"}]},
                     "shapes[1].shape: 'star' is not supported by this server, expected 'circle' or 'square'",
                     "shapes[1].shape", id="unknown-variant"),
        pytest.param({"title": "t", "shapes": [{"side": 2}]}, "shapes[0].shape: is required",
                     "shapes[0].shape", id="no-tag"),
        pytest.param({"title": "t", "shapes": [{"shape": "square", "radius": 2}]},
                     "shapes[0].radius: is not a parameter that this server knows", "shapes[0].radius",
                     id="field-of-another-variant"),
        pytest.param({"title": "t", "shapes": ["x"]}, "shapes[0]: 'x' is not an object", "shapes[0]",
                     id="no-object"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(body: dict[str, Any], message: str, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read(**body)
    assert (str(caught.value), caught.value.param) == (message, param)


def test_a_body_that_is_no_object_is_malformed() -> None:
    with pytest.raises(MalformedBody, match="the body is a list of 1, expected a JSON object"):
        DRAWING.read("", [1], LIMITS)


def test_a_name_that_is_unknown_and_long_is_cut() -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        read(title="t", **{"x" * 1000: 1})
    assert caught.value.param == "x" * 60


def test_the_schema_says_what_is_read() -> None:
    schema = DRAWING.schema(LIMITS)
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    assert schema["required"] == ["title"]
    assert schema["properties"]["copies"] == {
        "type": ["integer", "null"],
        "minimum": -3,
        "maximum": 3,
        "default": 1,
        "description": "Copies.",
    }
    assert "filled_by_the_parser" not in schema["properties"]
    fits: list[dict[str, Any]] = [
        {"title": "t", "shapes": [{"shape": "square", "side": 2}]},
        {"title": True, "depth": 2},
    ]
    for body in fits:
        assert validator.is_valid(body)
        read(**body)
    shapes = [{"shape": "star"}]
    for change in ({"title": None}, {"shapes": shapes}, {"hue": 1}, {"unknown": 1}, {"depth": 3}):
        assert not validator.is_valid({"title": "t", **change})


def test_a_field_is_declared_once() -> None:
    class Twice(msgspec.Struct, frozen=True, kw_only=True):
        colours: Annotated[Colours, Inline()]
        hue: Annotated[str, Text(8), "A second hue."] = ""

    with pytest.raises(ValueError, match="Twice declares a field twice"):
        Object(Twice)
    with pytest.raises(ValueError, match="Colours declares a field twice"):
        Object(Colours, unsupported={"hue": ()})
