"""The bundle's README: a model card in a page."""

from pathlib import Path
from typing import Any

from export.certificate import Certificate, VariantReport
from finetune.recipe import Recipe
from tasks import Input, TaskSpec
from tasks.inputs import input_to_json

__all__ = ["write_card"]


def write_card(directory: Path, certificate: Certificate, recipe: Recipe, spec: TaskSpec, example: Input) -> None:
    """Writes `README.md`: what the model does, what it was made from, what was certified, how to ask it."""
    published = next(one for one in certificate.variants if one.name == certificate.published)
    rows = "\n".join(
        f"| {name} | {value:.4f} | {published.metrics[name]:.4f} |" for name, value in certificate.pytorch.items()
    )
    shown = ", ".join(f"`{label}`" for label in spec.labels[:20])
    more = f" and {len(spec.labels) - 20} more" if len(spec.labels) > 20 else ""
    (directory / "README.md").write_text(
        f"""# {recipe.name}

A `{spec.task}` model fine-tuned from `{_public_name(recipe.base_model)}`, exported to ONNX
({certificate.published}, opset {certificate.opset}) and certified against its PyTorch checkpoint by
paritybit {certificate.versions["paritybit"]}.

Labels ({len(spec.labels)}): {shown}{more}. It reads {spec.max_length} tokens at once; an answer says `truncated`
where a longer text was cut.

| metric on {certificate.evidence.test_rows:,} test rows | PyTorch | this bundle |
| --- | --- | --- |
{rows}

{_gates(published)}

The figures hold for data like the test rows. `certificate.html` shows every gate, the rows that changed, and the
machine that it was measured on.

```python
from bundle import Predictor

Predictor.load("path/of/this/folder")([{_shortened(input_to_json(example))}])
```
""",
        encoding="utf-8",
    )


def _gates(published: VariantReport) -> str:
    return "\n".join(f"- {gate}" for gate in published.gates)


def _shortened(example: dict[str, Any]) -> dict[str, Any]:
    """The first 200 characters, or 30 words, of each text: enough to show what is asked."""
    return {key: value[: 200 if isinstance(value, str) else 30] for key, value in example.items()}


def _public_name(base_model: str) -> str:
    """A local directory by its name alone: the path is nobody's business."""
    return Path(base_model).name if Path(base_model).is_absolute() else base_model
