"""Models run over rows as they are: the teacher's soft labels, and the words that a masked language model proposes."""

from dataclasses import dataclass

from pipeline.augment.batches import Inputs
from pipeline.augment.candidates import candidates_columns
from pipeline.augment.jobs import Done, kept
from pipeline.augment.partition import Partition, Place
from pipeline.augment.teacher import FrozenTeacher, ModelSet
from pipeline.config.corpus import Split
from pipeline.config.errors import PipelineError
from pipeline.corpus.encoding import encode
from pipeline.shards.manifest import ShardEntry
from pipeline.shards.reader import Rows, Shards
from pipeline.shards.schema import candidates_schema, shard_schema
from pipeline.shards.writer import write_shard
from pipeline.store.keys import Key
from pipeline.store.store import Store


@dataclass(frozen=True)
class SoftLabelJob:
    """The teacher's logits on the clean inputs of a partition: variant 0."""

    place: Place
    shared_key: Key
    batch_rows: int
    variant: int = 0

    @property
    def split(self) -> Split:
        return self.place.split

    @property
    def partition(self) -> int:
        return self.place.number

    @property
    def key(self) -> Key:
        return self.shared_key | {"variant": 0, "examples": self.place.examples_hash}

    @property
    def name(self) -> str:
        return f"soft_labels of {self.split}, partition {self.partition}"

    def work(self) -> "SoftLabelWork":
        """The texts.

        Raises:
            PipelineError: they are no longer those that the key names.
        """
        examples = self.place.read()
        if examples.examples_hash() != self.place.examples_hash:
            raise PipelineError(f"the tables in {self.place.prepared} were changed while this run was going; start it again")
        return SoftLabelWork(examples, self.key, self.key["max_length"], self.batch_rows)


@dataclass(frozen=True)
class SoftLabelWork:
    """Encode texts and score them."""

    examples: Partition
    key: Key
    max_length: int
    batch_rows: int

    def run(self, models: ModelSet, store: Store) -> Done:
        """Write the shard of soft_labels."""
        inputs, truncated = self.encoded(models.teacher)
        logits = models.teacher.logits(inputs, models.batches, self.batch_rows)
        columns = inputs.columns(0, self.examples.labels, logits)
        schema = shard_schema("soft_labels", models.teacher.task.kind, inputs.token_type_ids is not None)
        statistics = {"truncated": float(truncated)}
        receipt = kept(store, self.key, lambda path: write_shard(path, schema, columns, self.key, {}, statistics))
        return Done(receipt, tuple(models.batches.notes()))

    def encoded(self, teacher: FrozenTeacher) -> tuple[Inputs, int]:
        """The texts as token ids, and how many were cut."""
        encoded = encode(teacher.tokenizer, self.examples.first, self.examples.second, self.max_length)
        return Inputs(self.examples.example_ids, encoded.input_ids, encoded.token_type_ids), encoded.truncated


@dataclass(frozen=True)
class SoftLabelShard:
    """One shard of soft_labels, read when it is needed."""

    source: Shards
    entry: ShardEntry

    @property
    def examples_hash(self) -> str:
        """Names the examples."""
        return str(self.entry.receipt.key["examples"])

    def rows(self) -> Rows:
        """All of the shard, mapped into memory."""
        return self.source.rows_of(self.entry)

    def inputs(self) -> Inputs:
        """The token ids."""
        shard = self.rows()
        types = shard.lists("token_type_ids") if self.source.manifest.token_types else None
        return Inputs(shard.column("example_id").to_pylist(), shard.lists("input_ids"), types)


@dataclass(frozen=True)
class CandidatesJob:
    """The words that a masked language model finds likely at every place of a partition's texts."""

    soft_labels: SoftLabelShard
    shared_key: Key
    variant: int = 0
    split: Split = "train"

    @property
    def partition(self) -> int:
        return self.soft_labels.entry.partition

    @property
    def key(self) -> Key:
        return self.shared_key | {"examples": self.soft_labels.examples_hash}

    @property
    def name(self) -> str:
        return f"word candidates, partition {self.partition}"

    def work(self) -> "CandidatesWork":
        """The token ids."""
        return CandidatesWork(self.soft_labels.inputs(), self.key)


@dataclass(frozen=True)
class CandidatesWork:
    """Ask a masked language model for candidates."""

    inputs: Inputs
    key: Key

    def run(self, models: ModelSet, store: Store) -> Done:
        """Write the candidates; they serve every variant of these rows."""
        found = models.masked_lm.candidates(self.inputs)
        schema, columns = candidates_schema(), candidates_columns(self.inputs, found)
        receipt = kept(store, self.key, lambda path: write_shard(path, schema, columns, self.key, {}, {}))
        return Done(receipt, tuple(models.masked_lm.batches.notes()))
