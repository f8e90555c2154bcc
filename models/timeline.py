"""Our timeline model: fused tokens, an event memory, a backbone in real time, and heads.

One forward pass over a packed batch gives a hidden state at every token, which has seen everything
known by then and nothing else. Heads read the states at the tokens where a question is asked.

The backbone is a stack of Mamba blocks; attention layers may stand between them or in their place.
Off by default as well: code vectors shared along the coding systems, the hazards of many codes, and
what an encoder saw in waveforms.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from tsfm.batches.batch import Batch
from tsfm.errors import ModelMismatch
from tsfm.models.class_head import ClassHead
from tsfm.models.code_embedding import CodeSharing
from tsfm.models.embeddings import EventEmbedding
from tsfm.models.event_memory import EventMemory
from tsfm.models.heads import DAY_BINS, CompetingHazards, NextEvent
from tsfm.models.mamba import Mamba, MambaConfig
from tsfm.models.many_hazards import ManyHazards
from tsfm.models.signal_embedding import SignalEmbedding
from tsfm.models.timeline_backbone import HybridBackbone, NoMemory

MODEL_TYPE = "timeline"
_PART = {"part": True}  # marks fields of parts that a model may be without


@dataclass(frozen=True)
class TimelineConfig:
    """Configuration of a timeline model.

    Attributes:
        n_codes: Size of the vocabulary.
        backbone: Sizes of the Mamba stack.
        memory_width: Channels of the linear event memory in front of the backbone; 0 for none.
        edges_days: Bin edges of the hazard heads, in days.
        code_dropout: See `EventEmbedding`.
        tasks: Names of the fine-tuned tasks, each with a hazard head of its own.
        class_tasks: Names of the fine-tuned tasks with classes, each with a softmax head.
        n_classes: Classes of each of these.
        attention_after: Numbers of Mamba blocks behind which an attention layer stands, 0 for in
            front of all; see `HybridBackbone`.
        attention_heads: Heads of an attention layer.
        attention_only: Attention layers in the place of all Mamba blocks.
        hazard_codes: Codes, or parents of codes, whose next occurrence has a hazard.
        hazard_edges_days: Bin edges of these, in days.
        hazard_rank: See `ManyHazards`.
        share_codes: Code vectors share along their parents; see `CodeSharing`.
        code_words: Buckets of the words of descriptions, which they share as well; 0 for none.
        signal_vectors: Vectors of a waveform that its token reads; 0 where no waveform is read.
        signal_width: Numbers in each.
        signal_dropout: See `SignalEmbedding`.
        signal_encoder: Hash of the encoder that made the vectors of the training data.
    """

    n_codes: int
    backbone: MambaConfig = field(default_factory=MambaConfig)
    memory_width: int = 128
    edges_days: tuple[float, ...] = DAY_BINS
    code_dropout: float = 0.02
    tasks: tuple[str, ...] = ()
    class_tasks: tuple[str, ...] = ()
    n_classes: tuple[int, ...] = ()
    attention_after: tuple[int, ...] = field(default=(), metadata=_PART)
    attention_heads: int = field(default=2, metadata=_PART)
    attention_only: bool = field(default=False, metadata=_PART)
    hazard_codes: tuple[str, ...] = field(default=(), metadata=_PART)
    hazard_edges_days: tuple[float, ...] = field(default=DAY_BINS, metadata=_PART)
    hazard_rank: int = field(default=16, metadata=_PART)
    share_codes: bool = field(default=False, metadata=_PART)
    code_words: int = field(default=0, metadata=_PART)
    signal_vectors: int = field(default=0, metadata=_PART)
    signal_width: int = field(default=0, metadata=_PART)
    signal_dropout: float = field(default=0.3, metadata=_PART)
    signal_encoder: str = field(default="", metadata=_PART)

    def stored(self) -> dict[str, Any]:
        """Plain values for `config.json`.

        Optional parts at their defaults are left out, so that a version which does not know them
        reads a model that has none.
        """
        values = asdict(self)
        usual = [f.name for f in fields(self) if f.metadata and getattr(self, f.name) == f.default]
        return {name: value for name, value in values.items() if name not in usual}


class TimelineModel(nn.Module):
    """Encoder of patient timelines with heads.

    Heads: `next_event` (code, value and time of the next token), `admission` (time to the next
    hospital admission with death competing, trained at every token), `many_hazards` (time to the
    next occurrence of each of many codes, if the configuration names any), and one head a task:
    hazards, or a softmax where the answer is one of several classes.
    """

    def __init__(self, config: TimelineConfig) -> None:
        """Build embedding, backbone and heads."""
        super().__init__()
        self.config = config
        d_model = config.backbone.d_model
        self.embedding = EventEmbedding(
            config.n_codes, d_model, dropout=config.code_dropout, sharing=_sharing(config),
            signals=_signals(config),
        )  # fmt: skip
        self.memory = _memory(config)
        self.backbone = _backbone(config)
        self.next_event = NextEvent(d_model, config.n_codes)
        self.admission = self._hazard_head()
        self.tasks = nn.ModuleDict({name: self._hazard_head() for name in config.tasks})
        self.class_tasks = nn.ModuleDict(
            {
                name: ClassHead(d_model, n, dropout=config.backbone.dropout)
                for name, n in zip(config.class_tasks, config.n_classes, strict=True)
            }
        )
        self.many_hazards = None
        if config.hazard_codes:
            self.many_hazards = ManyHazards(
                d_model,
                len(config.hazard_codes),
                edges_days=config.hazard_edges_days,
                rank=config.hazard_rank,
            )

    def _hazard_head(self) -> CompetingHazards:
        return CompetingHazards(
            self.config.backbone.d_model,
            edges_days=self.config.edges_days,
            dropout=self.config.backbone.dropout,
        )

    def forward(self, batch: Batch) -> Float[Tensor, "token model"]:
        """Hidden state after every token."""
        x = self.memory(self.embedding(batch), batch.gap_hours, batch.cu_seqlens)
        times = {} if isinstance(self.backbone, Mamba) else {"seconds": batch.time_s}
        return self.backbone(x, batch.gap_hours, batch.cu_seqlens, **times)

    def log_hazard(
        self,
        task: str,
        hidden: Float[Tensor, "token model"],
        position: Int[Tensor, " point"],
        elapsed_hours: Float[Tensor, " point"],
    ) -> Float[Tensor, "point cause bin"]:
        """Log hazards of a task at some positions; see `CompetingHazards`."""
        return self.task_head(task)(hidden[position], elapsed_hours)

    def task_head(self, task: str) -> CompetingHazards:
        """Hazard head of a fine-tuned task.

        Raises:
            ModelMismatch: The model was not fine-tuned for it.
        """
        if task not in self.tasks:
            raise _not_trained(task)
        head = self.tasks[task]
        assert isinstance(head, CompetingHazards)
        return head

    def class_head(self, task: str) -> ClassHead:
        """Softmax head of a fine-tuned task with classes.

        Raises:
            ModelMismatch: The model was not fine-tuned for it.
        """
        if task not in self.class_tasks:
            raise _not_trained(task)
        head = self.class_tasks[task]
        assert isinstance(head, ClassHead)
        return head

    def code_probability(
        self,
        hidden: Float[Tensor, "point model"],
        horizon_days: float,
        elapsed_hours: Float[Tensor, " point"] | None = None,
    ) -> Float[Tensor, "point code"]:
        """P(each of `config.hazard_codes` happens within the horizon); see `ManyHazards`.

        Raises:
            ModelMismatch: The model has no hazards of codes.
        """
        if self.many_hazards is None:
            raise ModelMismatch(
                "the model has no hazards of codes", code="no_code_hazards", place="config.json",
                remedy="Pretrain it with `ModelParts(n_hazard_codes=...)`.",
            )  # fmt: skip
        elapsed = None if elapsed_hours is None else elapsed_hours / 24.0
        return self.many_hazards.probability(self.many_hazards(hidden), horizon_days, elapsed)


def _sharing(config: TimelineConfig) -> CodeSharing | None:
    if not config.share_codes:
        return None
    width = config.backbone.d_model
    return CodeSharing(config.n_codes, width, n_word_buckets=config.code_words)


def _signals(config: TimelineConfig) -> SignalEmbedding | None:
    if not config.signal_vectors:
        return None
    return SignalEmbedding(
        config.signal_vectors, config.signal_width, config.backbone.d_model,
        dropout=config.signal_dropout,
    )  # fmt: skip


def _memory(config: TimelineConfig) -> EventMemory | NoMemory:
    if not config.memory_width:
        return NoMemory()
    return EventMemory(
        config.backbone.d_model,
        width=config.memory_width,
        fastest_hours=config.backbone.fastest_hours,
        slowest_hours=config.backbone.slowest_hours,
    )


def _backbone(config: TimelineConfig) -> Mamba | HybridBackbone:
    if not (config.attention_after or config.attention_only):
        return Mamba(config.backbone)
    return HybridBackbone(
        config.backbone,
        attention_after=config.attention_after,
        n_heads=config.attention_heads,
        attention_only=config.attention_only,
    )


def _not_trained(task: str) -> ModelMismatch:
    return ModelMismatch(
        f"the model has no head for '{task}'",
        code="task_not_trained",
        place="config.json",
        remedy="Fine-tune it with `tsfm finetune`.",
    )
