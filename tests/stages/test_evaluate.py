from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from click.testing import CliRunner
from transformers import BertConfig, BertForSequenceClassification

from pipeline.evaluation.quality import logits_of
from pipeline.models.loading import load_classifier
from pipeline.shards.manifest import LINEAGE_FILE, lineage, manifest_hash
from pipeline.shards.reader import Shards
from pipeline.store.files import write_json
from stages.evaluate import main
from tests.fake_run import MOVIES, params, read, write_scores
from tests.world import make_tokenizer


def save_bert(folder: Path, layers: int, labels: tuple[str, ...] = MOVIES.labels) -> None:
    torch.manual_seed(layers)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=50, num_hidden_layers=layers, **sizes)
    config.id2label = dict(enumerate(labels))
    BertForSequenceClassification(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    MOVIES.save(folder)


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    save_bert(tmp_path / "teacher", 4)
    save_bert(tmp_path / "half", 1)
    write_scores(tmp_path, MOVIES, 30, lineage(tmp_path / "teacher"))
    write_json(tmp_path / "half" / LINEAGE_FILE, {"scores": manifest_hash(tmp_path / "scores" / "movies")})
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params("movies")))
    places = {"scores": "scores/movies", "teacher": "teacher", "student": "half", "out": "out", "params": "params.yaml"}
    return [text for flag, place in places.items() for text in (f"--{flag}", str(tmp_path / place))]


def test_evaluate_writes_predictions_quality_and_speed(arguments: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert result.output.startswith("movies/half: accuracy 0.")

    table = pq.read_table(tmp_path / "out" / "predictions.parquet")
    rows = Shards(tmp_path / "scores" / "movies").rows("test", 0)
    assert table.column_names == ["id", "label", "teacher_logits", "student_logits"]
    assert table.column("id").to_pylist() == [row.example_id for row in rows]
    wanted = logits_of(load_classifier(tmp_path / "half"), rows, 0, 1)
    np.testing.assert_allclose(np.array(table.column("student_logits").to_pylist()), wanted, atol=1e-6)

    found = read(tmp_path / "out" / "quality.json")
    answered = np.array(table.column("student_logits").to_pylist()).argmax(1)
    teacher = np.array(table.column("teacher_logits").to_pylist()).argmax(1)
    assert found["rows"] == 30
    assert found["student"]["value"] == pytest.approx((answered == table.column("label").to_numpy()).mean())
    assert found["student"]["agreement"] == pytest.approx((answered == teacher).mean())
    assert found["teacher"]["agreement"] == found["teacher"]["retained"] == 1.0
    assert found["student"]["parameters"] < found["teacher"]["parameters"]
    assert found["student"]["bytes"] == (tmp_path / "half" / "model.safetensors").stat().st_size

    speed = read(tmp_path / "out" / "speed.json")
    assert speed["student"]["latency_ms"] < speed["teacher"]["latency_ms"], "one layer against four"


def test_a_student_of_other_labels_writes_nothing(arguments: list[str], tmp_path: Path) -> None:
    save_bert(tmp_path / "half", 1, ("positive", "negative"))
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "half has the labels positive, negative, but task movies has negative, positive" in result.output
    assert not (tmp_path / "out").exists()


def error(arguments: list[str], flag: str, folder: Path) -> str:
    given = list(arguments)
    given[given.index(flag) + 1] = str(folder)
    result = CliRunner().invoke(main, given)
    assert result.exit_code == 1
    return str(result.output)


def test_a_student_of_other_scores_is_not_measured_on_what_it_may_have_learnt(arguments: list[str], tmp_path: Path) -> None:
    write_scores(tmp_path / "other", MOVIES, 40, lineage(tmp_path / "teacher"))
    said = error(arguments, "--scores", tmp_path / "other" / "scores" / "movies")
    assert "half was trained from other scores than those in" in said
    assert "has no readable lineage.json, so it is no student" in error(arguments, "--student", tmp_path / "teacher")
    assert not (tmp_path / "out").exists()


def test_a_teacher_that_did_not_make_the_scores_is_refused(arguments: list[str], tmp_path: Path) -> None:
    save_bert(tmp_path / "other", 3)
    said = error(arguments, "--teacher", tmp_path / "other")
    assert "the scores in" in said
    assert "teacher" in said
    assert "Name the teacher that made them" in said


def test_all_faults_of_the_settings_are_reported_at_once(arguments: list[str], tmp_path: Path) -> None:
    broken = {"evaluate": {"batch_rows": 0, "bootstrap_resamples": 2000, "timed_rows": "many"}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(broken))
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    for place in ("evaluate.batch_rows", "evaluate.timed_rows", "evaluate.timed_rounds is missing"):
        assert place in result.output
