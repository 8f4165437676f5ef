"""A student as a job for any node that sees the store: models, manifests and shards are read from there."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.config.errors import naming
from pipeline.config.settings import Checkpoint
from pipeline.distill.jobs import StudentJob
from pipeline.shards.manifest import MANIFEST_FILE, SHARD_FILE, Manifest, manifest_hash, put_shards
from pipeline.store.keys import Key
from pipeline.store.store import Store, add_files, add_folder, needed


@dataclass(frozen=True)
class StoredJob:
    """A job whose folders are entries of the store."""

    job: StudentJob
    """With the driver's folders, which errors name."""
    keys: Mapping[str, Key]
    """The entry of each of these folders: the files of a model, or the manifest of a set of shards."""

    @classmethod
    def put(cls, job: StudentJob, store: Store, known: Mapping[str, Key] | None = None) -> "StoredJob":
        """Put into the store what it lacks of models, manifests and shards; ``known`` are the keys of folders put before."""
        start, keys = job.settings.initial_weights, dict(known or {})
        named = [Path(start.checkpoint)] if isinstance(start, Checkpoint) else []
        models = [job.teacher, *(path for path in named if path.is_dir())]  # another one is on the hub
        sets = list(filter(None, (job.soft_labels, job.wanted_shards)))
        for folder in (folder for folder in models if str(folder) not in keys):
            keys[str(folder)] = add_folder(store, "model", folder)
        for folder in (folder for folder in sets if str(folder) not in keys):
            put_shards(store, folder, Manifest.read(folder).shards)
            keys[str(folder)] = {"content": "manifest", "sha256": manifest_hash(folder)}
            add_files(store, keys[str(folder)], {MANIFEST_FILE: folder / MANIFEST_FILE})
        return cls(job, {str(folder): keys[str(folder)] for folder in (*models, *sets)})

    @contextmanager
    def opened(self, store: Store) -> Iterator[StudentJob]:
        """The same job on folders of this node."""
        with tempfile.TemporaryDirectory(prefix="student-") as place:
            copies = {}
            for number, (folder, key) in enumerate(self.keys.items()):
                entry = needed(store, key, folder)
                shards = key["content"] == "manifest" and not store.remote
                copies[folder] = _with_shards(store, entry.folder, Path(place) / str(number)) if shards else entry.folder
            here = replace(
                self.job,
                soft_labels=copies[str(self.job.soft_labels)],
                shards=copies.get(str(self.job.shards), self.job.shards),
                teacher=copies[str(self.job.teacher)],
            )
            start = here.settings.initial_weights
            if isinstance(start, Checkpoint) and (copy := copies.get(str(Path(start.checkpoint)))):
                moved = {"initial_weights": Checkpoint(checkpoint=str(copy))}
                here = replace(here, settings=here.settings.model_copy(update=moved))
            with naming({str(copy): folder for folder, copy in copies.items()}):
                yield here


def _with_shards(store: Store, manifest: Path, folder: Path) -> Path:
    """A folder with a manifest and links to its shards in the store, like a published one."""
    folder.mkdir()
    (folder / MANIFEST_FILE).symlink_to(manifest / MANIFEST_FILE)
    for entry in Manifest.read(manifest).shards:
        stored = store.peek(entry.receipt.key) or store.fetch(entry.receipt.key, entry.receipt.files)
        (folder / entry.file).symlink_to(stored.folder / SHARD_FILE)
    return folder
