import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.errors import PipelineError
from pipeline.store.store import Store
from pipeline.shards.usage import Uses, check_known, look_for_uses
from tests import stored
from tests.stored import PERTURBED, SCORES, STRONGER, add, publish

data, store = stored.data, stored.store


def test_a_manifest_is_found_at_any_depth_but_not_in_the_store_or_hidden(store: Store, data: Path) -> None:
    keys = add(store, SCORES)
    for place in ("scores/tiny", ".partial-0123456789ab-tiny", "scores/.old/tiny", "store/tiny"):
        publish(data / place, store, keys)
    uses = look_for_uses([data], store)
    assert uses.folders == {store.shard_path(key).stem: {data / "scores" / "tiny"} for key in keys}
    assert (set(uses.makers), uses.without, uses.unreadable) == ({"ab" * 32}, (), ())


def test_manifests_behind_a_link_are_found_and_a_link_in_a_circle_ends(store: Store, data: Path, tmp_path: Path) -> None:
    keys = add(store, SCORES, 1)
    publish(tmp_path / "disk" / "tiny", store, keys)
    (data / "scores").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "circle").symlink_to(data)
    assert set(look_for_uses([data], store).folders) == {store.shard_path(keys[0]).stem}


def test_what_any_of_several_clones_lists_is_in_use(store: Store, data: Path, tmp_path: Path) -> None:
    here, there = add(store, PERTURBED), add(store, STRONGER)
    publish(data / "tiny", store, here)
    publish(tmp_path / "clone" / "tiny", store, there)
    uses = look_for_uses([data, tmp_path / "clone"], store)
    assert set(uses.folders) == {store.shard_path(key).stem for key in here + there}


def test_a_mistyped_folder_is_refused_also_beside_one_that_is_right(store: Store, data: Path, tmp_path: Path) -> None:
    publish(data / "tiny", store, add(store, SCORES))
    uses = look_for_uses([data, tmp_path / "dta"], store)
    with pytest.raises(PipelineError, match=r"no manifest.json below .*/dta, .* give --everything"):
        check_known(uses, everything=False)
    check_known(uses, everything=True)
    check_known(look_for_uses([data], store), everything=False)


@pytest.mark.parametrize("content", ["{", '{"format_version": 0}', "[]"])
@pytest.mark.parametrize("everything", [True, False])
def test_a_manifest_that_cannot_be_read_is_named_and_nothing_overrules_it(
    store: Store, data: Path, content: str, everything: bool
) -> None:
    publish(data / "tiny", store, add(store, SCORES))
    (data / "other").mkdir()
    (data / "other" / "manifest.json").write_text(content)
    with pytest.raises(PipelineError, match=r"so nothing is deleted:\n  - .*/data/other/manifest.json"):
        check_known(look_for_uses([data], store), everything)


def test_a_folder_that_cannot_be_looked_into_is_named(store: Store, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(data / "tiny", store, add(store, SCORES))
    scan = os.scandir

    def closed(path: Any) -> Any:
        if str(path).endswith("tiny"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    uses = look_for_uses([data], store)
    assert uses.unreadable == (f"{data / 'tiny'} cannot be looked into (Permission denied)",)
    with pytest.raises(PipelineError, match="nothing is deleted"):
        check_known(uses, everything=True)


def test_nothing_in_use_is_all_that_can_be_said_of_no_manifests(store: Store, data: Path) -> None:
    add(store, SCORES)
    assert look_for_uses([data], store) == Uses({}, {}, (), (data,))
