"""Our timeline model: fused tokens, an event memory, a Mamba backbone in real time, and heads.

One forward pass over a packed batch gives a hidden state at every token, which has seen everything
known by then and nothing else. Heads read the states at the tokens where a question is asked.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import Float, Int
from torch import Tensor, nn

from tsfm.batches.batch import Batch
from tsfm.errors import ModelMismatch
from tsfm.models.class_head import ClassHead
from tsfm.models.embeddings import EventEmbedding
from tsfm.models.event_memory import EventMemory
from tsfm.models.heads import DAY_BINS, CompetingHazards, NextEvent
from tsfm.models.mamba import Mamba, MambaConfig

MODEL_TYPE = "timeline"


@dataclass(frozen=True)
class TimelineConfig:
    """Configuration of a timeline model.

    Attributes:
        n_codes: Size of the vocabulary.
        backbone: Sizes of the Mamba stack.
        memory_width: Channels of the linear event memory in front of the backbone.
        edges_days: Bin edges of the hazard heads, in days.
        code_dropout: See `EventEmbedding`.
        tasks: Names of the fine-tuned tasks, each with a hazard head of its own.
        class_tasks: Names of the fine-tuned tasks with classes, each with a softmax head.
        n_classes: Classes of each of these.
    """

    n_codes: int
    backbone: MambaConfig = field(default_factory=MambaConfig)
    memory_width: int = 128
    edges_days: tuple[float, ...] = DAY_BINS
    code_dropout: float = 0.02
    tasks: tuple[str, ...] = ()
    class_tasks: tuple[str, ...] = ()
    n_classes: tuple[int, ...] = ()


class TimelineModel(nn.Module):
    """Encoder of patient timelines with heads.

    Heads: `next_event` (code, value and time of the next token), `admission` (time to the next
    hospital admission with death competing, trained at every token), and one head a task: hazards,
    or a softmax where the answer is one of several classes.
    """

    def __init__(self, config: TimelineConfig) -> None:
        """Build embedding, backbone and heads."""
        super().__init__()
        self.config = config
        d_model = config.backbone.d_model
        self.embedding = EventEmbedding(config.n_codes, d_model, dropout=config.code_dropout)
        self.memory = EventMemory(
            d_model,
            width=config.memory_width,
            fastest_hours=config.backbone.fastest_hours,
            slowest_hours=config.backbone.slowest_hours,
        )
        self.backbone = Mamba(config.backbone)
        self.next_event = NextEvent(d_model, config.n_codes)
        self.admission = self._hazard_head()
        self.tasks = nn.ModuleDict({name: self._hazard_head() for name in config.tasks})
        self.class_tasks = nn.ModuleDict(
            {
                name: ClassHead(d_model, n, dropout=config.backbone.dropout)
                for name, n in zip(config.class_tasks, config.n_classes, strict=True)
            }
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
        return self.backbone(x, batch.gap_hours, batch.cu_seqlens)

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


def _not_trained(task: str) -> ModelMismatch:
    return ModelMismatch(
        f"the model has no head for '{task}'",
        code="task_not_trained",
        place="config.json",
        remedy="Fine-tune it with `tsfm finetune`.",
    )
