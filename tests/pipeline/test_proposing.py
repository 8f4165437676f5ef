from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from pipeline.proposing import WORDS_FILE, WordsFacts, words_in


def test_a_folder_that_the_stage_did_not_write_is_refused_and_a_damaged_note_too(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=rf"{tmp_path} has no words\.json; the stage words writes it"):
        words_in(tmp_path)
    (tmp_path / WORDS_FILE).write_text('{"model": 3}')
    with pytest.raises(PipelineError, match=r"words\.json is damaged: \('model',\); make it again with dvc repro"):
        words_in(tmp_path)


def test_what_a_person_is_told() -> None:
    assert WordsFacts(model=None).told() == "no masked language model, since the task asks for none"
    assert WordsFacts(model="some", fitted=True, nats=4.219).told() == "fitted, 4.22 nats a token asked for on dev"
    assert WordsFacts(model="some").told() == "adopted as it is"
