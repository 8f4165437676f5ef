"""Distillation with the teacher at work in every step, by transformers.Trainer or by TextBrewer: the peers of benchmarks.peers.

python benchmarks/peer_loops.py FOLDER WAY trains the students of FOLDER/job.json and prints what it took as one line of JSON.
It runs in TextBrewer's environment too, so it imports nothing of this project.
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments, get_scheduler, set_seed

with suppress(ImportError):  # only in its own environment
    import textbrewer

Batch = dict[str, Tensor]

EPSILON = "epsilon.txt"
"""Of a folder of work: the bound on δ that ours found, in units of the word embeddings."""


class Texts(Dataset[Any]):
    """Tokenised rows; those with labels, dev's, longest first, which pads least."""

    def __init__(self, tokenizer: Any, columns: list[list[str]], labels: list[int] | None = None) -> None:
        cut = dict(tokenizer(*columns, truncation=True)) | ({} if labels is None else {"labels": labels})
        self._rows = [dict(zip(cut, row, strict=True)) for row in zip(*cut.values(), strict=True)]
        if labels is not None:
            self._rows.sort(key=lambda row: -len(row["input_ids"]))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self._rows[row]


class GivenSteps:
    """A batch sampler: each pass yields the rows of the next epoch's steps."""

    def __init__(self, epochs: Sequence[Sequence[Sequence[int]]]) -> None:
        self._epochs, self._steps = iter(epochs), len(epochs[0])

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[Sequence[int]]:
        return iter(next(self._epochs))


class Teaching:
    """What a student reads in a step and the teacher's logits on it: clean rows and, with a search, the same rows perturbed."""

    def __init__(self, job: dict[str, Any], teacher: Any, student: Any, tokenizer: Any, linear: Tensor | None) -> None:
        self.search: Any = job.get("search")
        self._teacher, self._student, self._linear = teacher, student, linear
        self._special = torch.tensor([number for number in tokenizer.all_special_ids if number != tokenizer.unk_token_id])
        self._table = teacher.get_input_embeddings()

    @torch.no_grad()
    def logits(self, **inputs: Tensor) -> Tensor:
        """The teacher's."""
        logits: Tensor = self._teacher(**inputs).logits
        return logits

    def __call__(self, batch: Batch) -> tuple[Batch, Tensor]:
        """The student's inputs, [rows, …] or [2 · rows, …], and logits of as many rows."""
        clean = self.logits(**batch)
        if self.search is None:
            return batch, clean
        ids, others = batch["input_ids"], {name: value for name, value in batch.items() if name != "input_ids"}
        delta = self._searched(ids, others, clean)
        perturbed = self.logits(inputs_embeds=self._table(ids) + delta, **others)
        own = self._student.get_input_embeddings()(ids)
        doubled = {name: torch.cat([value, value]) for name, value in others.items()}
        return doubled | {"inputs_embeds": torch.cat([own, self._moved(own, delta)])}, torch.cat([clean, perturbed])

    def _moved(self, own: Tensor, delta: Tensor) -> Tensor:
        """The student's embeddings moved by δ, which is in the teacher's space."""
        return own + (delta if self._linear is None else delta @ self._linear)

    def _searched(self, ids: Tensor, others: Batch, clean: Tensor) -> Tensor:
        """Steps uphill on KL(teacher's clean ‖ at δ) from random signs, within epsilon at each token; no dropout."""
        epsilon, flat, training = self.search["epsilon"], self.search["norm"] == "linf", self._student.training
        model = self._teacher if self.search["gradient_from"] == "teacher" else self._student.eval()
        with torch.no_grad():
            words = model.get_input_embeddings()(ids)
            free = ((others["attention_mask"] == 1) & ~torch.isin(ids, self._special.to(ids.device))).unsqueeze(-1)
            signs = torch.randn_like(self._table(ids)).sign()
        delta: Tensor = self.search["init"] * epsilon * (signs if flat else functional.normalize(signs, dim=-1)) * free
        for _ in range(self.search["num_steps"]):
            delta.requires_grad_(True)
            at = words + delta if model is self._teacher else self._moved(words, delta)
            logits = model(inputs_embeds=at, **others).logits
            (gradient,) = torch.autograd.grad(functional.cross_entropy(logits, clean.softmax(-1), reduction="sum"), delta)
            step = gradient.sign() if flat else functional.normalize(gradient, dim=-1, eps=1e-30)
            delta = (delta.detach() + self.search["step_size"] * epsilon * step) * free
            outside = delta.abs() if flat else delta.norm(dim=-1, keepdim=True)
            delta = delta * (epsilon / outside.clamp(min=epsilon))
        self._student.train(training)
        return delta


class Distiller(Trainer):
    """A Trainer that runs the teacher in ``compute_loss``."""

    def __init__(self, teaching: Teaching, loss: dict[str, float], loader: DataLoader[Any], **arguments: Any) -> None:
        super().__init__(**arguments)
        self.model_accepts_loss_kwargs = False
        self._teaching, self._loss, self._loader = teaching, loss, loader

    def get_train_dataloader(self) -> DataLoader[Any]:
        return self._loader

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross-entropy to the teacher's probabilities, whose gradient is that of the KL; in evaluation only logits."""
        if not model.training:
            logits = model(**{name: value for name, value in inputs.items() if name != "labels"}).logits
            return logits.new_zeros(()), {"logits": logits}
        read, wanted = self._teaching(inputs)
        heat = self._loss["temperature"]
        loss = functional.cross_entropy(model(**read).logits / heat, (wanted / heat).softmax(-1))
        return self._loss["weight"] * loss


def by_transformers(teaching: Teaching, student: Any, train: DataLoader[Any], dev: DataLoader[Any], one: Any, out: Path) -> int:
    """Train with dev and a checkpoint of the weights after every epoch; returns the steps."""
    settings, steps = one["training"], one["steps"]
    passed = ("num_train_epochs", "learning_rate", "lr_scheduler_type", "weight_decay", "max_grad_norm")
    arguments = TrainingArguments(
        output_dir=str(out / "checkpoints"), **{name: settings[name] for name in passed}, seed=settings["seed"],
        per_device_train_batch_size=settings["batch_size"], per_device_eval_batch_size=settings["batch_size"],
        warmup_steps=round(settings["warmup_ratio"] * steps), use_cpu=not torch.cuda.is_available(), eval_strategy="epoch",
        save_strategy="epoch", logging_strategy="epoch", save_total_limit=1, save_only_model=True,
        remove_unused_columns=False, label_names=["labels"], report_to="none",
        disable_tqdm=True,
    )  # fmt: skip
    trainer = Distiller(
        teaching, one["loss"], train, model=student, args=arguments, train_dataset=train.dataset, eval_dataset=dev.dataset,
        data_collator=dev.collate_fn,
        compute_metrics=lambda found: {"accuracy": float((found.predictions.argmax(1) == found.label_ids).mean())},
    )  # fmt: skip
    trainer.train()
    return int(trainer.state.global_step)


def by_textbrewer(
    teaching: Teaching,
    student: Any,
    train: DataLoader[Any],
    dev: DataLoader[Any],
    one: Any,
    out: Path,
    teacher: Any,
    cached: bool,
) -> int:
    """As by_transformers, with TextBrewer's distiller; ``cached`` runs the teacher once, then shuffles the batches."""
    settings, loss = one["training"], one["loss"]
    groups = [
        {"params": [value for value in student.parameters() if value.dim() > 1], "weight_decay": settings["weight_decay"]},
        {"params": [value for value in student.parameters() if value.dim() < 2], "weight_decay": 0.0},
    ]
    device, found = student.device, dict[int, float]()

    def adversarial(batch: Batch) -> dict[str, Any]:
        read, wanted = teaching({name: value.to(device) for name, value in batch.items()})
        return {"teacher": {}, "student": read, "teacher_cache": {"logits": wanted}}

    @torch.no_grad()
    def evaluated(model: Any, step: int) -> None:
        model.eval()
        sent = ({name: value.to(device) for name, value in batch.items()} for batch in dev)
        right = [labels == model(**batch).logits.argmax(1) for batch, labels in ((rows, rows.pop("labels")) for rows in sent)]
        found[step] = float(torch.cat(right).float().mean())

    kind = textbrewer.BasicDistiller if cached else textbrewer.GeneralDistiller
    distiller = kind(
        textbrewer.TrainingConfig(output_dir=str(out / "checkpoints"), device=device),
        textbrewer.DistillationConfig(
            temperature=loss["temperature"], kd_loss_weight=loss["weight"], kd_loss_type="ce", is_caching_logits=cached
        ),
        teacher, student, *2 * [lambda batch, outputs: {"logits": outputs["logits"]}],
    )  # fmt: skip
    schedule = {"num_warmup_steps": round(settings["warmup_ratio"] * one["steps"]), "num_training_steps": one["steps"]}
    with distiller:
        distiller.train(
            torch.optim.AdamW(groups, lr=settings["learning_rate"], fused=True), train, settings["num_train_epochs"],
            scheduler_class=get_scheduler, scheduler_args={"name": settings["lr_scheduler_type"], **schedule},
            max_grad_norm=settings["max_grad_norm"], callback=evaluated,
            batch_postprocessor=None if teaching.search is None else adversarial,
        )  # fmt: skip
    return max(found)


def main(folder: Path, way: str) -> None:
    """Train every student in one way."""
    torch.set_num_threads(1)
    start_mb, began, worked, steps = peak_mb(), time.perf_counter(), time.process_time(), {}
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    if "search" in job:
        job["search"]["epsilon"] = float((folder / EPSILON).read_text(encoding="utf-8"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(job["teacher"])
    teacher = AutoModelForSequenceClassification.from_pretrained(job["teacher"]).to(device).eval().requires_grad_(False)
    train, dev = Texts(tokenizer, job["train"]), Texts(tokenizer, job["dev"], job["labels"])

    def padded(rows: list[dict[str, Any]]) -> Batch:
        return dict(tokenizer.pad(rows, return_tensors="pt"))

    for name, one in job["students"].items():
        set_seed(one["training"]["seed"])
        student = AutoModelForSequenceClassification.from_pretrained(one["initial"]).to(device)
        linear = torch.load(Path(one["initial"]) / "map.pt", map_location=device)
        loaders = (
            DataLoader(train, batch_sampler=GivenSteps(one["batches"]), collate_fn=padded),  # type: ignore[arg-type]
            DataLoader(dev, batch_size=one["training"]["batch_size"], collate_fn=padded),
        )
        teaching, out = Teaching(job, teacher, student, tokenizer, linear), folder / way / name
        if way == "transformers":
            steps[name] = by_transformers(teaching, student, *loaders, one, out)
        else:
            steps[name] = by_textbrewer(teaching, student, *loaders, one, out, teacher, cached=way.endswith("_cached"))
        student.save_pretrained(out)
    taken = {"seconds": time.perf_counter() - began, "processor": time.process_time() - worked, "stage_one": 0.0}
    print(json.dumps(taken | {"start_mb": start_mb, "peak_mb": peak_mb(), "steps": steps}))


def peak_mb() -> float:
    """The most memory that this process has had; ru_maxrss would count that of its parent before exec."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1000


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
