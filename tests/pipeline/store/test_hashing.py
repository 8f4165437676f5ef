import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pipeline.store.hashing import differences, key_hash

keys = st.dictionaries(st.text(max_size=5), st.integers() | st.floats(0, 1) | st.booleans() | st.text(max_size=3), max_size=5)


@given(keys, keys)
def test_two_keys_have_one_name_only_if_nothing_differs(one: dict[str, Any], other: dict[str, Any]) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (key_hash(one) == key_hash(other)) == same
    assert key_hash(one) == key_hash(dict(reversed(one.items())))
    assert len(key_hash(one)) == 32


@given(keys, keys)
def test_differences_name_each_field_that_differs_and_no_other(wanted: dict[str, Any], found: dict[str, Any]) -> None:
    lines = differences(wanted, found)
    names = [name for name in sorted(wanted.keys() | found.keys()) if wanted.get(name) != found.get(name)]
    assert len(lines) == len(names)
    assert all(line.startswith(f"{name}: ") for line, name in zip(lines, names, strict=True))
    assert differences(wanted, wanted) == []


def test_a_difference_shows_both_values_and_hashes_cut_short() -> None:
    assert differences({"teacher": "a" * 64, "max_length": 64}, {"teacher": "b" * 64, "max_length": 32}) == [
        "max_length: 64 wanted, 32 found",
        f"teacher: {'a' * 12}… wanted, {'b' * 12}… found",
    ]
