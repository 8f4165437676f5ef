"""A small labelled set as the suite finds them."""

from pathlib import Path


def save_set(folder: Path, name: str, train: int, dev: int, test: int) -> Path:
    """With a column too many, texts that tell their split, and quotes that mean nothing."""
    place = folder / name
    place.mkdir(parents=True)
    for split, rows in {"train": train, "dev": dev, "test": test}.items():
        lines = [f'{"ab"[row % 2]}\tx\t{split} "{row} word{row % 60}' for row in range(rows)]
        (place / f"{split}.tsv").write_text("\n".join(["label\tfine\ttext", *lines]) + "\n", encoding="utf-8")
    return folder
