"""What a worker computes with: the teacher, a scout, a masked language model, each loaded when first needed.

Knows folders; not who computes or for which shard.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from pipeline.augment.batches import Batches
from pipeline.augment.masked_lm import MaskedLM, MaskedLMSettings
from pipeline.augment.teacher import FrozenTeacher, Precision, Scout
from pipeline.config.errors import PipelineError
from pipeline.models.folder import model_hash
from pipeline.perturbation.surrogate import ScoutFolder

CHANGED = "{} was changed while this run was going; start it again"


@dataclass(frozen=True)
class ModelFolders:
    """Where the models lie."""

    teacher: Path
    scout: Path | None = None
    masked_lm: Path | None = None
    """None where no recipe replaces words."""
    proposing: MaskedLMSettings | None = None
    """How many words it proposes."""
    teacher_hash: str | None = None
    """That which keys name the teacher by; None where nothing is kept of what it answers."""
    scout_hashes: tuple[str, ...] = ()
    """Those which keys name the scout's snapshots by; none where nothing is kept."""
    masked_lm_hash: str | None = None
    """That which keys name the masked language model by; None where nothing is kept of what it proposes."""

    def at(self, moved: Callable[[Path], Path]) -> "ModelFolders":
        """The same models at other places."""
        scout, masked_lm = (None if folder is None else moved(folder) for folder in (self.scout, self.masked_lm))
        return replace(self, teacher=moved(self.teacher), scout=scout, masked_lm=masked_lm)

    def files(self) -> list[Path]:
        """What a worker needs: of a model's folder its files, not what training left below; of a scout all snapshots."""
        flat = [folder for folder in (self.teacher, self.masked_lm) if folder is not None and folder.is_dir()]
        found = [file for folder in flat for file in folder.iterdir() if file.is_file()]
        return sorted(found) + sorted(file for file in (self.scout.rglob("*") if self.scout else ()) if file.is_file())


class ModelSet:
    """The models of one worker; a teacher that cannot be loaded is the error of the first job, not of the worker."""

    def __init__(self, folders: ModelFolders, precision: Precision) -> None:
        self._folders, self._precision = folders, precision
        self._scouts: dict[int, Scout] = {}
        self.batches = Batches()

    @cached_property
    def teacher(self) -> FrozenTeacher:
        """The teacher on this worker's device.

        Raises:
            PipelineError: its folder is no longer that which the keys name.
        """
        folder, wanted = self._folders.teacher, self._folders.teacher_hash
        loaded = FrozenTeacher(folder, self._precision)
        if wanted is not None and model_hash(folder) != wanted:
            raise PipelineError(CHANGED.format(f"the teacher in {folder}"))
        return loaded

    @cached_property
    def masked_lm(self) -> MaskedLM:
        """The model that proposes words.

        Raises:
            PipelineError: it is no longer that which the keys name.
        """
        folder, settings, wanted = self._folders.masked_lm, self._folders.proposing, self._folders.masked_lm_hash
        assert folder is not None, "no recipe asks for masked_lm without a model"
        assert settings is not None, "no recipe asks for masked_lm without its settings"
        loaded = MaskedLM(folder, settings, self.teacher.tokenizer, half=self._precision == "bfloat16")
        if wanted is not None and model_hash(folder) != wanted:
            raise PipelineError(CHANGED.format(f"the masked language model in {folder}"))
        return loaded

    def scout(self, snapshot: int) -> Scout:
        """A snapshot of the scout; they are small and all kept, since a calibration asks for each again and again.

        Raises:
            PipelineError: it is no longer that which the keys name.
        """
        assert self._folders.scout is not None, "only a job that is aimed at a scout asks for it"
        if snapshot not in self._scouts:
            folder, wanted = ScoutFolder(self._folders.scout), self._folders.scout_hashes
            loaded = Scout(folder, snapshot, self._precision)
            if wanted and folder.hash_of(snapshot) != wanted[snapshot - 1]:
                raise PipelineError(CHANGED.format(f"the scout in {folder.folder}"))
            self._scouts[snapshot] = loaded
        return self._scouts[snapshot]
