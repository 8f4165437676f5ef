import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from pipeline.augment.passes import augment, soft_label
from pipeline.augment.plans import Augmentation
from pipeline.config.errors import PipelineError
from pipeline.config.settings import SurrogateSettings
from pipeline.distill.student import make_student
from pipeline.distill.surrogate import train_surrogate
from pipeline.models.folder import ModelFolder
from pipeline.models.forward import Scale
from pipeline.models.loading import load_classifier
from pipeline.perturbation.surrogate import MAP_FILE, SURROGATE_FILE, SurrogateFolder, hashes_in, surrogates_in
from pipeline.shards.manifest import Manifest, ShardMismatch, lineage, training_hash
from pipeline.shards.reader import Shards
from pipeline.training.callbacks import NO_CHECKPOINTS
from stages.surrogate import main
from tests import world
from tests.world import INFERENCE, augment_settings, make_task, runtime_at, save_prepared, save_teacher

Folders = tuple[Path, Path]
STUDENT: dict[str, Any] = world.STUDENT | {"training": world.TRAINING | {"num_train_epochs": 3, "batch_size": 16}}
NARROW = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}


def settings(training: dict[str, Any] | None = None, **changes: Any) -> SurrogateSettings:
    asked = {"training": STUDENT["training"] | (training or {}), "checkpoints": 3}
    return SurrogateSettings.model_validate(STUDENT | asked | changes)


@pytest.fixture(scope="module", params=[{}, NARROW], ids=["shallow", "narrow"])
def size(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(request.param)


@pytest.fixture(scope="module")
def surrogate(
    soft_labels: Path, teacher: Path, size: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> SurrogateFolder:
    out = tmp_path_factory.mktemp("surrogates") / "1"
    train_surrogate(soft_labels, ModelFolder(teacher), settings(**size), out)
    return SurrogateFolder(out)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_surrogate_is_its_checkpoints_its_history_its_facts_and_a_map_only_where_it_is_narrower(
    surrogate: SurrogateFolder, size: dict[str, Any], soft_labels: Path, teacher: Path
) -> None:
    maps = [MAP_FILE] if size else []
    names = sorted(path.name for path in surrogate.folder.iterdir())
    assert names == sorted(["history.csv", SURROGATE_FILE, *maps, "surrogate-1", "surrogate-2", "surrogate-3"])
    wanted, found = make_student(ModelFolder(teacher), settings(**size), 3).map, surrogate.map()
    assert (found is None) == (wanted is None) == (not maps)
    assert found is None or wanted is None or torch.equal(found, wanted)
    for number in (1, 2, 3):
        assert load_classifier(ModelFolder(surrogate.checkpoint(number))).config.num_hidden_layers == 2
        assert ModelFolder(surrogate.checkpoint(number)).tokenizer_hash == ModelFolder(teacher).tokenizer_hash
    facts, last = surrogate.facts(), (surrogate.folder / "history.csv").read_text().splitlines()[-1]
    assert (facts.key, facts.soft_labels, facts.checkpoints) == (lineage(ModelFolder(teacher)), training_hash(soft_labels), 3)
    assert last.startswith("3,12,")
    assert facts.dev == float(last.split(",")[-1]), "of its last state, not of its best"


def test_two_runs_give_the_same_bytes_wherever_they_are_written(
    surrogate: SurrogateFolder, size: dict[str, Any], soft_labels: Path, teacher: Path, tmp_path: Path
) -> None:
    torch.rand(7)
    train_surrogate(soft_labels, ModelFolder(teacher), settings(**size), tmp_path / "again")
    assert SurrogateFolder(tmp_path / "again").hashes() == surrogate.hashes()
    assert files_of(tmp_path / "again") == files_of(surrogate.folder)


def test_another_seed_or_another_number_of_checkpoints_is_another_surrogate_but_the_last_state_stays(
    soft_labels: Path, teacher: Path, tmp_path: Path
) -> None:
    hashes = {}
    for name, seed, checkpoints in (("two", 3, 2), ("one", 3, 1), ("seed", 4, 2)):
        changed = settings({"num_train_epochs": 1, "seed": seed}, checkpoints=checkpoints)
        train_surrogate(soft_labels, ModelFolder(teacher), changed, tmp_path / name)
        hashes[name] = SurrogateFolder(tmp_path / name).hashes()
    assert hashes["one"] == hashes["two"][1:]
    assert not set(hashes["seed"]) & set(hashes["two"])


def test_soft_labels_of_another_teacher_are_rejected_by_the_name_of_what_differs(soft_labels: Path, tmp_path: Path) -> None:
    other = save_teacher(tmp_path / "other", make_task(), seed=5)
    with pytest.raises(
        ShardMismatch, match=r"the soft labels in .* do not fit: teacher: \w+… wanted, \w+… found\. .*dvc repro"
    ):
        train_surrogate(soft_labels, ModelFolder(other), settings(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_more_checkpoints_than_steps_are_rejected_and_what_was_there_stays(
    soft_labels: Path, teacher: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(PipelineError, match="surrogate tiny: 13 checkpoints of 12 steps"):
        train_surrogate(soft_labels, ModelFolder(teacher), settings(checkpoints=13), tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out"]


@pytest.fixture(scope="module")
def following(soft_labels: Path, teacher: Path, surrogate: SurrogateFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four variants: three follow the checkpoints in turn, one is only edited."""
    folder = tmp_path_factory.mktemp("following")
    made = augment_settings({"gradient_from": "surrogate"}, variants=4, recipes=[["perturb"], ["mask", "perturb"], ["mask"]])
    augment(Augmentation.of(soft_labels, teacher, made, surrogate.folder.parent), runtime_at(folder), folder / "shards")
    return folder / "shards"


def test_every_perturbed_variant_names_the_checkpoint_whose_gradient_it_follows(
    following: Path, surrogate: SurrogateFolder
) -> None:
    manifest = Manifest.read(following)
    assert manifest.details["checkpoints"] == 3
    one, two, three = hashes_in(surrogate.folder.parent)
    found = {entry.variant: entry.receipt.key.get("surrogate") for entry in manifest.shards}
    assert found == {1: one, 2: two, 3: None, 4: three}


def test_the_gradient_of_a_surrogate_gives_other_perturbations_than_the_teachers(
    following: Path, soft_labels: Path, teacher: Path, tmp_path: Path
) -> None:
    augment(Augmentation.of(soft_labels, teacher, augment_settings(variants=1)), runtime_at(tmp_path), tmp_path / "own")
    pairs = zip(Shards(following).rows("train", 1), Shards(tmp_path / "own").rows("train", 1), strict=True)
    assert all(bytes(one.delta or b"") != bytes(own.delta or b"") for one, own in pairs)


def command(sections: dict[str, Any], gradient_from: str, soft_labels: Path, teacher: Path, folder: Path) -> Result:
    augment = world.sections_of(
        world.AUGMENT | {"perturbation": world.AUGMENT["perturbation"] | {"gradient_from": gradient_from}}
    )
    runtime = runtime_at(folder).model_dump(mode="json")
    params = sections | augment | {"tasks": {"tiny": {}}, "runtime": runtime}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    places = {"soft-labels": soft_labels, "teacher": teacher, "params": folder / "params.yaml", "out": folder / "out"}
    options = [text for flag, path in places.items() for text in (f"--{flag}", str(path))]
    return CliRunner().invoke(main, ["--task", "tiny", *options])


def test_the_command_merges_the_section_surrogate_over_distill(soft_labels: Path, teacher: Path, tmp_path: Path) -> None:
    own = {"num_hidden_layers": 1, "checkpoints": 2, "training": {"num_train_epochs": 1}}
    distill = {name: value for name, value in STUDENT.items() if name != "training"}
    sections = {"training": STUDENT["training"], "distill": distill, "surrogate": own}
    result = command(sections, "surrogate", soft_labels, teacher, tmp_path)
    assert result.exit_code == 0, result.output
    facts = json.loads((tmp_path / "out" / "1" / SURROGATE_FILE).read_text())
    assert facts["settings"]["training"] == STUDENT["training"] | {"num_train_epochs": 1}
    assert facts["key"].items() >= lineage(ModelFolder(teacher)).items()
    assert f"2 checkpoints, dev {facts['dev']:.4f}" in result.output


def test_the_command_trains_one_surrogate_of_each_size_and_keeps_them_apart_in_the_store(
    soft_labels: Path, teacher: Path, tmp_path: Path
) -> None:
    own = {"sizes": [{"num_hidden_layers": 1}, NARROW], "checkpoints": 2, "training": {"num_train_epochs": 1}}
    distill = {name: value for name, value in STUDENT.items() if name not in ("training", "num_hidden_layers")}
    sections = {"training": STUDENT["training"], "distill": distill, "surrogate": own}
    assert command(sections, "surrogate", soft_labels, teacher, tmp_path).exit_code == 0
    shallow, narrow = surrogates_in(tmp_path / "out")
    assert (shallow.map() is None, narrow.map() is None) == (True, False)
    hashes = narrow.hashes()
    alone = sections | {"surrogate": own | {"sizes": [NARROW]}}
    result = command(alone, "surrogate", soft_labels, teacher, tmp_path)
    assert "finished before, taken from" in result.output
    assert [one.hashes() for one in surrogates_in(tmp_path / "out")] == [hashes], "the other one is gone"


def test_the_command_trains_no_surrogate_for_a_task_that_asks_for_none(
    soft_labels: Path, teacher: Path, tmp_path: Path
) -> None:
    sections = {"training": STUDENT["training"], "distill": STUDENT, "surrogate": {"checkpoints": 2}}
    result = command(sections, "teacher", soft_labels, teacher, tmp_path)
    assert (result.exit_code, "no surrogate, since no variant of this task follows one" in result.output) == (0, True)
    assert [file.name for file in (tmp_path / "out").iterdir()] == [SURROGATE_FILE]


def test_every_checkpoint_of_a_regression_gives_real_values(tmp_path: Path) -> None:
    task, teacher, soft_labels = make_task("regression"), tmp_path / "teacher", tmp_path / "soft_labels"
    model = load_classifier(ModelFolder(save_teacher(teacher, task)))
    Scale(500.0, 20.0).put_into(model)
    model.save_pretrained(teacher)
    prepared = save_prepared(tmp_path / "prepared", task, {"train": 60, "dev": 20, "test": 10})
    soft_label(prepared, teacher, INFERENCE, runtime_at(tmp_path), soft_labels)
    values = Shards(soft_labels).rows("train", 0).matrix("teacher_logits")
    for number, options in enumerate([NO_CHECKPOINTS, replace(NO_CHECKPOINTS, checkpoints=tmp_path / "states")]):
        out = tmp_path / f"surrogate-{number}"
        train_surrogate(soft_labels, ModelFolder(teacher), settings(), out, options)
        for checkpoint in (1, 2, 3):
            with torch.inference_mode():
                logits = load_classifier(ModelFolder(SurrogateFolder(out).checkpoint(checkpoint)))(
                    torch.tensor([[2, 9, 10, 3], [2, 20, 30, 3]])
                ).logits
            assert (logits - values.mean()).abs().max() < 5 * values.std()
