import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from dvc.utils.serialize import dumps_yaml, parse_yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field

from pipeline.config.errors import Faults, PipelineError
from pipeline.config.params import Settings, load, naming_faults, read_params
from tests.parameters import ROOT

Write = Callable[[str, str], Path]


class Fit(Settings):
    epochs: Annotated[int, Field(ge=1)]
    rate: Annotated[float, Field(gt=0)]
    norm: Literal["l2", "linf"] = "l2"


class Needs(Settings):
    fit: Fit
    out: str


WHOLE = "fit: {epochs: 3, rate: 0.5}\nrun: {out: here}\n"


def faults(path: Path, model: type[Settings] = Needs, **places: Any) -> list[str]:
    """Each fault that loading finds, without its place in the list."""
    with pytest.raises(Faults) as refusal:
        load(path, model, **({"fit": "fit", "out": "run.out"} | places))
    assert str(refusal.value).splitlines()[1:] == [f"  - {fault}" for fault in refusal.value.faults]
    return list(refusal.value.faults)


@pytest.mark.parametrize(
    "content",
    [b"a: b: c", b"\xff\xfe", b"a: 1\n---\nb: 1", b"a: *b", b"a: !!int x", b"? - -", b"a: !!python/object/apply:os.getcwd []"],
)
def test_what_is_no_yaml_is_refused_with_the_files_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "params.yaml").write_bytes(content)
    with pytest.raises(PipelineError, match=r"params\.yaml is not readable YAML: "):
        read_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("content", ["", "- a\n- b\n", "just text", "3"])
def test_a_file_that_is_no_mapping_holds_no_settings(write: Write, content: str) -> None:
    with pytest.raises(PipelineError, match=r"params\.yaml holds no settings; it must be a mapping"):
        read_params(write("params.yaml", content))


def test_all_faults_are_told_at_once_each_with_its_place_and_value(write: Write) -> None:
    path = write("params.yaml", "fit: {epochs: 0, norm: l3, pace: 7}\nrun: {out: 3}\n")
    assert sorted(faults(path)) == [
        "fit.epochs: input should be greater than or equal to 1, not 0",
        "fit.norm: input should be 'l2' or 'linf', not 'l3'",
        "fit.pace is not a setting known here (value: 7)",
        "fit.rate is missing",
        "run.out: input should be a valid string, not 3 (write it in quotes)",
    ]


@pytest.mark.parametrize(
    ("field", "text"),
    [("epochs", "'3'"), ("epochs", "3.0"), ("epochs", "true"), ("rate", "'0.5'"), ("rate", ".nan"), ("norm", "[l2]")],
)
def test_no_value_is_converted_silently(write: Write, text: str, field: str) -> None:
    section = {"epochs": "3", "rate": "0.5"} | {field: text}
    content = "fit: {" + ", ".join(f"{name}: {value}" for name, value in section.items()) + "}\nrun: {out: x}"
    (fault,) = faults(write("params.yaml", content))
    assert fault.startswith(f"fit.{field}: input should be ")


def test_a_section_without_settings_is_empty_and_not_missing(write: Write) -> None:
    path = write("params.yaml", "fit:\nrun: {out: x}")
    assert faults(path) == ["fit is empty; write its settings, or {} for none of its own"]


@given(number=st.floats(1e-300, 1e300), digits=st.integers(0, 16), dot=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
def test_every_spelling_of_a_number_is_that_number(write: Write, number: float, digits: int, dot: bool) -> None:
    text = f"{number:.{digits}e}"
    text = text if dot else text.replace("e+", "e").replace(".", "")
    path = write("params.yaml", f"fit: {{epochs: 1, rate: {text}}}\nrun: {{out: x}}")
    if math.isfinite(float(text)):
        assert load(path, Needs, fit="fit", out="run.out").fit.rate == float(text)


@pytest.mark.parametrize("text", ["1e3", "2E1", "20.0", "'2e1'"])
def test_a_whole_number_with_point_or_exponent_comes_with_a_spelling_that_works(write: Write, text: str) -> None:
    (fault,) = faults(write("params.yaml", f"fit: {{epochs: {text}, rate: 0.5}}\nrun: {{out: x}}"))
    path = write("params.yaml", f"fit: {{epochs: {fault.split('write ')[1].split(')')[0]}, rate: 0.5}}\nrun: {{out: x}}")
    assert load(path, Needs, fit="fit", out="run.out").fit.epochs == int(float(text.strip("'")))


@pytest.mark.parametrize("text", ["7e12345", "123", "1.5", "true"])
def test_a_text_that_yaml_reads_otherwise_is_to_be_written_in_quotes(write: Write, text: str) -> None:
    """Such as the short name of a commit."""
    (fault,) = faults(write("params.yaml", f"fit: {{epochs: 1, rate: 0.5}}\nrun: {{out: {text}}}"))
    assert fault.startswith("run.out: input should be a valid string, not ")
    assert fault.endswith(" (write it in quotes)")


@pytest.mark.parametrize("text", ["fast", "inf", "nan", "''", "１２", "0.5.1", "3.5", "true"])
def test_what_is_no_number_gets_no_advice_that_does_not_work(write: Write, text: str) -> None:
    fields = ["epochs"] if text == "3.5" else ["epochs", "rate"]
    section = "\n".join(f"  {field}: {text if field in fields else 0.5}" for field in ("epochs", "rate"))
    for field, fault in zip(fields, faults(write("params.yaml", f"fit:\n{section}\nrun: {{out: x}}")), strict=True):
        assert fault.startswith(f"fit.{field}: input should be a valid ")
        assert "write " not in fault


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-05", 2e-5), ("1e5", 1e5), ("-2E+05", -2e5), (".5", 0.5), ("1.", 1.0), ("100_000", 100000), ("007", 7), ("0o7", 7),
        ("0x1F", 31), ("yes", "yes"), ("no", "no"), ("on", "on"), ("Off", "Off"), ("true", True), ("False", False), ("~", None),
        ("null", None), ("", None), ("190:20:30", "190:20:30"), ("2020-01-01", "2020-01-01"), ("2020-13-45", "2020-13-45"),
        ("2001-12-14t21:59:43Z", "2001-12-14t21:59:43Z"), ('"1e5"', "1e5"), ("'no'", "no"), ("!!str 1e5", "1e5"),
    ],
)  # fmt: skip
def test_values_are_read_as_dvc_reads_them_but_for_dates_which_are_texts(write: Write, text: str, value: Any) -> None:
    found = read_params(write("params.yaml", f"a: {text}"))["a"]
    assert (found, type(found)) == (value, type(value))
    if not text.startswith("20"):
        assert parse_yaml(f"a: {text}", "params.yaml") == {"a": value}


texts = st.text(st.characters(exclude_categories=["C", "Z"]) | st.just(" "), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | texts
    | st.sampled_from(["yes", "no", "on", "off", "007", "0o7", "1e5", "1_0", "null", "~", "true", ".5", "2020-01-01", "<<", "=",
                       "2e-05", "- a", "a: b", "# c", "'", '"', " x", "\n", "é", "x" * 200]),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(texts, below, max_size=3),
)  # fmt: skip


@given(content=st.dictionaries(texts, values, min_size=1, max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
def test_what_dvc_writes_is_read_as_what_it_was_given(write: Write, content: dict[str, Any]) -> None:
    assert read_params(write("params.yaml", dumps_yaml(content))) == content


def test_the_projects_own_file_says_the_same_to_readers_of_yaml_1_1() -> None:
    assert yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8")) == read_params(ROOT / "params.yaml")


def test_a_missing_file_and_a_value_in_place_of_a_section_are_sentences(write: Write, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"absent\.yaml does not exist; .* --params$"):
        read_params(tmp_path / "absent.yaml")
    (fault,) = faults(write("params.yaml", "fit: 5\nrun: {out: x}\n"))
    assert fault == "fit: must be a mapping of names to settings, not 5"
    (fault,) = faults(write("params.yaml", "tasks: 3\nrun: {out: x}\n"), fit="tasks.movies.fit")
    assert fault.startswith("tasks.movies.fit is missing")


def test_a_section_that_is_not_there_is_named_with_those_that_are(write: Write) -> None:
    path = write("params.yaml", "tasks:\n  movies: {fit: {epochs: 1, rate: 0.5}}\n  news: {}\nrun: {out: x}\n")
    (fault,) = faults(path, fit="tasks.move.fit")
    assert fault == "tasks.move.fit is missing: there is no tasks.move, only movies, news"
    (fault,) = faults(path, fit="jobs.movies.fit")
    assert fault == "jobs.movies.fit is missing: there is no jobs, only tasks, run"
    (fault,) = faults(path, fit="tasks.news.fit")
    assert fault == "tasks.news.fit is missing"


MERGED = """
distill: {epochs: 3, rate: 0.5}
students:
  half: {epochs: 9}
  plain: {}
  odd: {rate: 0, pace: 1}
run: {out: x}
"""


def test_of_two_places_the_later_wins_key_by_key(write: Write) -> None:
    path = write("params.yaml", MERGED)
    for student, epochs in (("half", 9), ("plain", 3)):
        needs = load(path, Needs, fit=("distill", f"students.{student}"), out="run.out")
        assert needs.fit == Fit(epochs=epochs, rate=0.5)


def test_a_fault_in_merged_places_is_put_where_a_person_would_mend_it(write: Write) -> None:
    found = faults(write("params.yaml", MERGED), fit=("distill", "students.odd"))
    assert sorted(found) == [
        "students.odd.pace is not a setting known here (value: 1)",
        "students.odd.rate: input should be greater than 0, not 0",
    ]
    below = MERGED.replace("epochs: 3", "epochs: 0")
    assert faults(write("params.yaml", below), fit=("distill", "students.plain")) == [
        "distill.epochs: input should be greater than or equal to 1, not 0"
    ]


def test_what_was_merged_is_no_repeated_name_where_it_is_merged_again(write: Write) -> None:
    deep = "a: &a {x: 1, y: 1}\nb: {c: {d: &d {<<: *a, x: 2}}}\ne: {<<: *d, y: 3}\nf: {<<: [*d, *a]}\n"
    content = read_params(write("params.yaml", deep))
    assert [content["b"]["c"]["d"], content["e"], content["f"]] == [{"x": 2, "y": 1}, {"x": 2, "y": 3}, {"x": 2, "y": 1}]


@pytest.mark.parametrize(
    ("content", "names", "line"),
    [
        ("a: 1\nb: 2\na: 3\n'b': 2\n", "a, b", 1),
        ("a:\n  b: 1\n  b: 1\n", "b", 2),
        ("a: &a {x: 1}\nb: {<<: *a, y: 1, y: 2}\n", "y", 2),
        ("a: &a {x: 1}\nb: {<<: *a, <<: *a}\n", "<<", 2),
        ("yes: 1\non: 2\nyes: 3\n", "yes", 1),
    ],
)
def test_a_name_that_is_given_twice_is_named_with_its_line(write: Write, content: str, names: str, line: int) -> None:
    path = write("params.yaml", content)
    with pytest.raises(PipelineError, match=rf'given twice: {names}\n +in "{path}", line {line}, column '):
        read_params(path)


@pytest.mark.parametrize("content", [{"students": {}}, {"students": ["half"]}, {}])
def test_a_section_of_names_is_read_only_where_it_names_something_in_words(content: Any) -> None:
    assert naming_faults(content, "students") == ["students must map at least one name to its settings"]
    assert naming_faults({"students": {"half": None, "tiny": {}}}, "students") == []
    (fault,) = naming_faults({"students": {"half": {}, 1: {}}}, "students")
    assert fault == "students.1: YAML reads this name as no text; write it in quotes"
