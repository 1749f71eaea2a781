"""The sections of a recipe: every key with its type, its default and what it is for."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tasks.base import Frozen

__all__ = [
    "DataSection",
    "ExportSection",
    "Format",
    "LossSection",
    "Name",
    "PretrainSection",
    "Ratio",
    "RegularizeSection",
    "SweepRange",
    "SweepSection",
    "TrainSection",
]

Format = Literal["csv", "tsv", "jsonl", "parquet", "conll", "squad"]
Name = Annotated[str, Field(min_length=1)]
Ratio = Annotated[float, Field(ge=0, lt=1)]


class DataSection(Frozen):
    """`[data]`: where the rows stand and which columns matter."""

    hub: str | None = Field(default=None, description="Id of a hub data set, or a local directory of one.")
    hub_config: str | None = Field(default=None, description="Configuration of the hub data set.")
    train: str = Field(min_length=1, description="File, relative to the recipe; with `hub`, the name of a split.")
    validation: str | None = Field(default=None, min_length=1, description="As `train`; cut from it when missing.")
    test: str = Field(min_length=1, description="As `train`; used once, at the end, and for the parity check.")
    format: Format | None = Field(default=None, description="Of the files; told from their suffix when missing.")
    columns: dict[str, Name] = Field(
        default={},
        description="The column of each field of the task that does not bear the field's name; optional fields are "
        "read only when named here.",
    )
    validation_fraction: float = Field(
        default=0.1, gt=0, lt=1, description="Share of the training rows, stratified, when `validation` is missing."
    )


class PretrainSection(Frozen):
    """`[pretrain]`: masked language modelling on the texts of the training rows, before their labels are learnt."""

    epochs: int = Field(
        default=0, ge=0, description="0 does none; for few texts Gururangan et al. 2020 (arXiv:2004.10964) take 100."
    )
    learning_rate: float = Field(default=1e-4, gt=0, le=1, description="Peak, after a warm-up of 6 % of the steps.")
    masked_share: float = Field(default=0.15, gt=0, lt=1, description="Of the tokens, which are to be guessed.")


class TrainSection(Frozen):
    """`[train]`: the defaults are Mosbach et al. 2021 (arXiv:2006.04884), shortened."""

    learning_rate: float | None = Field(
        default=None, gt=0, le=1, description="Peak; chosen by the base model's width when missing: 2e-4, 3e-5 or 2e-5."
    )
    epochs: int | None = Field(
        default=None, ge=1, description="Chosen when missing: 4, or with few rows as many as make 400 steps."
    )
    batch_size: int = Field(default=32, ge=1, description="Rows of an optimizer step.")
    micro_batch_size: int | None = Field(
        default=None, ge=1, description="Rows in memory at once; a divisor of `batch_size`, which it is when missing."
    )
    optimizer: Literal["adamw", "adafactor", "lion", "adamw_8bit"] = Field(
        default="adamw",
        description="Lion (Chen et al. 2023) needs pytorch-optimizer; 8 bit is for CUDA and needs bitsandbytes.",
    )
    bias_correction: bool = Field(default=True, description="Without it Adam is that of the first BERT, and unstable.")
    schedule: Literal["linear", "cosine", "polynomial", "constant"] = Field(
        default="linear", description="Of the learning rate after the warm-up; down to 0 but for constant."
    )
    warmup_ratio: Ratio = Field(default=0.1, description="Share of all steps.")
    weight_decay: Ratio = Field(default=0.01, description="Not on biases and norms.")
    adam_epsilon: float = Field(default=1e-6, gt=0, le=1)
    max_grad_norm: float = Field(default=1.0, ge=0, description="Gradients are clipped to this norm; 0 clips nothing.")
    evaluations_per_epoch: int = Field(
        default=1, ge=1, description="The best evaluated checkpoint is kept. At most 20 in all where epochs are chosen."
    )
    early_stopping_patience: int = Field(
        default=3, ge=0, description="Evaluations without a better one after which training stops; 0 never stops."
    )
    dropout: Ratio | None = Field(
        default=None, description="Of every layer in training; the base model's own when missing. 0 learns fastest."
    )
    freeze_embeddings: bool = Field(default=False, description="Keeps the embeddings as pre-trained; saves time.")
    freeze_layers: int = Field(
        default=0, ge=0, description="That many of the lowest layers stay as pre-trained, with the embeddings."
    )
    freeze_encoder: bool = Field(default=False, description="Trains the head alone.")
    biases_only: bool = Field(
        default=False,
        description="Trains the head and all biases (BitFit, Ben Zaken et al. 2022), at a higher rate.",
    )
    lora_rank: int = Field(
        default=0,
        ge=0,
        description="Trains the head and low-rank adapters of all products (LoRA, Hu et al. 2022), merged at the end; "
        "0 has none, 8 is usual.",
    )
    lora_alpha: int = Field(default=16, ge=1, description="Over the rank, what the adapters are multiplied with.")
    gradual_unfreezing: bool = Field(
        default=False, description="The head alone at first, one layer more with each epoch (Howard & Ruder 2018)."
    )
    layer_decay: float = Field(
        default=1.0, gt=0, le=1, description="Learning rate of a layer over that of the layer above (Sun et al. 2019)."
    )
    reinitialize_layers: int = Field(
        default=0, ge=0, description="That many of the top layers, and the pooler, drawn anew (Zhang et al. 2021)."
    )
    keep_layers: int | None = Field(
        default=None, ge=1, description="Leaves out the layers above: smaller and faster (Sajjad et al. 2020)."
    )
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="bf16 autocast is meant for GPUs.")


class LossSection(Frozen):
    """`[loss]`: changes to what the task minimises. A key that it has no use for is refused."""

    label_smoothing: Ratio = Field(default=0.0, description="Share of each target given to all labels alike.")
    class_weights: Literal["none", "inverse", "sqrt_inverse", "effective_number"] = Field(
        default="none", description="Rare labels count for more (Cui et al. 2019); not together with smoothing."
    )
    focal_gamma: float = Field(
        default=0.0, ge=0, description="What is right already counts for less (Lin et al. 2017); 2 is usual."
    )
    max_positive_weight: float = Field(
        default=1.0, ge=1, description="Of several labels: a label on a text counts by its rarity, up to this."
    )
    negative_gamma: float | None = Field(
        default=None, ge=0, description="`focal_gamma` of labels that a text has not (Ridnik et al. 2021); 4 is usual."
    )
    probability_margin: Ratio = Field(
        default=0.0, description="Labels that a text has not and that are less probable count nothing; .05 is usual."
    )


class RegularizeSection(Frozen):
    """`[regularize]`: all off by default."""

    r_drop: float = Field(
        default=0.0,
        ge=0,
        description="Weight of how far two passes with dropout differ (Liang et al. 2021); 1 to 5.",
    )
    adversarial_epsilon: float = Field(
        default=0.0, ge=0, description="Length by which word embeddings are moved to where the loss rises; 1 is usual."
    )
    adversarial_steps: int = Field(
        default=1, ge=1, description="1 is FGM (Miyato et al. 2017), more is FreeLB (Zhu et al. 2020)."
    )
    neftune_alpha: float = Field(
        default=0.0, ge=0, description="Noise on word embeddings (Jain et al. 2023); 5 is usual."
    )
    dropout_samples: int = Field(
        default=0,
        ge=0,
        description="Dropouts of half of what the head's last layer is given, whose losses are averaged (multi-sample "
        "dropout, Inoue 2019); 4 to 8. 0 has none.",
    )
    mixout: Ratio = Field(
        default=0.0, description="Share of weights replaced by pre-trained ones at each step (Lee et al. 2020); .1."
    )
    pull_to_pretrained: Ratio = Field(
        default=0.0, description="Weight decay towards the pre-trained weights (L2-SP, Li et al. 2018)."
    )
    average: Literal["none", "ema", "swa"] = Field(
        default="none", description="Which average of the weights is evaluated and published."
    )
    ema_decay: Ratio = Field(default=0.999, description="Of the exponential average.")
    swa_share: float = Field(default=0.25, gt=0, le=1, description="Last part of training, of the equal average.")


class SweepRange(Frozen):
    """What a key is searched in: from `low` to `high`, both included, or among `choices`."""

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    choices: tuple[bool | int | float | str, ...] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.choices is None) == (self.low is None) or (self.low is None) != (self.high is None):
            raise ValueError("low and high, or choices")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError("a low that is less than high")
        if self.log and (self.low is None or self.low <= 0):
            raise ValueError("log with a low above 0")
        return self

    def ends(self) -> tuple[bool | int | float | str, ...]:
        """Values that a recipe must be able to take."""
        return self.choices or tuple(one for one in (self.low, self.high) if one is not None)


class SweepSection(Frozen):
    """`[sweep]`: what `paritybit sweep` searches."""

    trials: int = Field(default=20, ge=1, description="Trainings, those that are given up early included.")
    ranges: dict[str, SweepRange] = Field(
        min_length=1,
        description="By key: `{ low = 1e-5, high = 1e-3, log = true }` or `{ choices = [16, 32] }`.",
    )


class ExportSection(Frozen):
    """`[export]`: what is built from the checkpoint and the gates it must pass."""

    variants: tuple[Literal["fp32", "int8-dynamic", "int8-static", "fp16"], ...] = Field(
        default=("fp32", "int8-dynamic", "int8-static"),
        min_length=1,
        description="What may be published; fp16 is for ONNX Runtime on CUDA, slow on processors.",
    )
    objective: Literal["balanced", "latency", "throughput", "size"] = Field(
        default="balanced",
        description="What the published variant is best at: texts alone, in batches, both, or bytes.",
    )
    calibration_rows: int = Field(default=256, ge=1, description="Training rows that set the static int8 scales.")
    int8_embeddings: bool = Field(
        default=False,
        description="Also the word embeddings of int8 variants; where the objective is size, they are tried anyway.",
    )
    rehearsal_rows: int = Field(
        default=500, ge=1, description="Validation rows that ways to quantize are tried on before one is judged."
    )
    search_minutes: float = Field(
        default=30.0, gt=0, description="After which no further way to quantize is tried; the nearest so far is judged."
    )
    quantization_aware_steps: int = Field(
        default=300,
        ge=0,
        description="Optimizer steps towards int8, where no other way to quantize is good enough; 0 takes none.",
    )
    max_logit_delta: float = Field(default=1e-4, gt=0, description="fp32 against PyTorch.")
    min_agreement: float | None = Field(
        default=None, ge=0, le=1, description="Same answers, int8 against PyTorch; the task's own limit when missing."
    )
    max_metric_loss: float = Field(default=0.005, ge=0, le=1, description="Of the task's metric, int8.")
    max_batch_delta: float = Field(default=1e-6, ge=0, description="Of a text's logits, whatever the company.")
    opset: int = Field(default=20, ge=18, le=23)
    golden_rows: int = Field(default=16, ge=1)
