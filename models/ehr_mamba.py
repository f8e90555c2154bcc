"""EHRMamba (Fallahpour et al. 2024, arXiv 2405.14567): a Mamba-1 over visits, and prompted tasks.

The model reads the words of `tsfm.tokens.ehr_mamba_tokens` and is pretrained on the next one. In
multitask prompted fine-tuning (MPF) a task is asked by a word of its own behind the history, and
one head of two classes reads the state after it.

**A history is read once for all its questions.** The published code runs the whole sequence again
for every pair of patient and task, with the prompt at both ends. The prompt in front is left out
here: with it, the history's states depend on the task, and nothing can be shared. Then the state
after the history is the same for all tasks, and the K prompts are K sequences of one word that go
on from it. That holds for gradients as well (`forks`, `read_prompts`) and in scoring, where prompts
fork a row of the state by index and leave it as it was (`step_prompts`). Questions of one patient
at several moments share as much: the history is read in stretches from one moment to the next.

What else differs from the published recipe: no padding, so nothing is read at a wrong place, and no
end at 2,048 words; what differs in the sequence is told in `tsfm.tokens.ehr_mamba_tokens`, in the
embedding in `tsfm.models.ehr_mamba_embedding`. Dropout is in the embedding alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from tsfm.errors import InputError
from tsfm.models.ehr_mamba_embedding import EhrMambaEmbedding, EhrMambaTokens
from tsfm.models.mamba import BlockState, Mamba, MambaConfig, MambaState
from tsfm.tokens.ehr_mamba_tokens import EhrMambaPrompts

_N_ANSWERS = 2


@dataclass(frozen=True)
class EhrMambaConfig:
    """Sizes of the network; the defaults are the published ones.

    Attributes:
        n_words: Words, prompts among them.
        backbone: Sizes of the Mamba-1 stack.
        time_width: Waves of the time, and of the age.
        n_visits: Numbers of visits told apart.
        dropout: In the embedding, in training.
    """

    n_words: int
    backbone: MambaConfig = field(
        default_factory=lambda: MambaConfig.mamba1(d_model=768, n_layers=32)
    )
    time_width: int = 32
    n_visits: int = 512
    dropout: float = 0.1


@dataclass(frozen=True)
class Forks:
    """What histories have left behind at the moments of their questions.

    Attributes:
        state: State of the backbone, a row for each pair of subject and moment.
        source: (P,) row that each question goes on from.
    """

    state: MambaState
    source: Int[Tensor, " question"]


class EhrMamba(nn.Module):
    """Decoder of visits with a head for the next word and one for prompted questions.

    Args:
        config: Sizes.

    Raises:
        InputError: The backbone looks at hours, which Mamba-1 does not.
    """

    def __init__(self, config: EhrMambaConfig) -> None:
        """Build embedding, backbone and heads."""
        super().__init__()
        if config.backbone.real_time:
            raise InputError(
                "the backbone is in real time", code="not_mamba1", place="EhrMambaConfig.backbone",
                remedy="Use MambaConfig.mamba1(...).",
            )  # fmt: skip
        self.config = config
        d_model = config.backbone.d_model
        self.embedding = EhrMambaEmbedding(
            config.n_words,
            d_model,
            time_width=config.time_width,
            n_visits=config.n_visits,
            dropout=config.dropout,
        )
        self.backbone = Mamba(config.backbone)
        self.next_word = nn.Linear(d_model, config.n_words, bias=False)
        self.answer = nn.Sequential(
            nn.Linear(d_model, d_model), nn.GELU(), nn.Linear(d_model, _N_ANSWERS)
        )

    def forward(self, tokens: EhrMambaTokens) -> Float[Tensor, "token model"]:
        """State after every word."""
        return self.backbone(self.embedding(tokens), None, tokens.cu_seqlens)

    def loss(self, tokens: EhrMambaTokens) -> Float[Tensor, ""]:
        """Mean cross entropy of each subject's next word, in nats.

        Raises:
            InputError: No subject has two words.
        """
        last = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.word.device)
        last[tokens.cu_seqlens[1:] - 1] = True
        now = torch.nonzero(~last).squeeze(-1)
        if len(now) == 0:
            raise InputError("no word is followed by one", code="no_targets", place="tokens")
        # The output is the widest layer: only states with a target reach it.
        logits = self.next_word(self(tokens)[now])
        return F.cross_entropy(logits, tokens.word[now + 1])

    def answers(
        self, tokens: EhrMambaTokens, prompts: EhrMambaPrompts
    ) -> Float[Tensor, "question 2"]:
        """Logits of (false, true) of all questions to some histories, with gradients.

        Args:
            tokens: Histories.
            prompts: Questions to them, their positions counted in `tokens`.
        """
        return self.read_prompts(prompts, self.forks(tokens, prompts.position))

    def answer_loss(self, tokens: EhrMambaTokens, prompts: EhrMambaPrompts) -> Float[Tensor, ""]:
        """Cross entropy of the labels, the mean of the tasks' means: each task counts alike.

        Raises:
            InputError: No question has a label.
        """
        known = prompts.label >= 0
        if not known.any():
            raise InputError("no question has a label", code="no_labels", place="prompts")
        _, task, count = np.unique(prompts.task[known], return_inverse=True, return_counts=True)
        weight = torch.from_numpy(1.0 / (len(count) * count[task]))
        logits = self.answers(tokens, prompts)[torch.from_numpy(known).to(tokens.word.device)]
        label = torch.from_numpy(prompts.label[known]).to(logits.device)
        each = F.cross_entropy(logits, label, reduction="none")
        return (each * weight.to(each)).sum()

    def forks(self, tokens: EhrMambaTokens, position: np.ndarray) -> Forks:
        """Read histories up to the moments of their questions; each word is read once.

        Subjects whose questions lie at one moment take one pass; at several, the next stretch of
        each subject goes on from what the last one left. Words behind a last question are not read.

        Args:
            tokens: Histories.
            position: Word behind which each question stands.

        Raises:
            InputError: A position is outside the histories, or there is none.
        """
        device = tokens.word.device
        if len(position) == 0 or position.min() < 0 or position.max() >= len(tokens):
            raise InputError(
                "questions stand behind words that are not there, or there are none",
                code="bad_position", place="position",
                remedy="Make the prompts from the streams of this batch.",
            )  # fmt: skip
        borders = tokens.cu_seqlens.cpu().numpy()
        cuts, source = np.unique(position, return_inverse=True)
        owner = np.searchsorted(borders, cuts, side="right") - 1
        is_first = np.diff(owner, prepend=-1) > 0
        begin = np.where(is_first, borders[owner], np.roll(cuts, 1) + 1)
        index = np.arange(len(cuts))
        turn = index - np.maximum.accumulate(np.where(is_first, index, 0))
        held: MambaState | None = None
        held_owner = np.zeros(0, np.int64)
        read: list[tuple[np.ndarray, MambaState]] = []
        for k in range(int(turn.max()) + 1):
            rows = np.flatnonzero(turn == k)
            length = cuts[rows] + 1 - begin[rows]
            own = np.concatenate([[0], np.cumsum(length)])
            places = np.arange(own[-1]) + np.repeat(begin[rows] - own[:-1], length)
            part = tokens.at(torch.from_numpy(places).to(device), torch.from_numpy(own).to(device))
            if held is not None:
                kept = np.searchsorted(held_owner, owner[rows])
                held = _rows_of(held, torch.from_numpy(kept).to(device))
            _, left = self.backbone(
                self.embedding(part), None, part.cu_seqlens, state=held, return_state=True
            )
            held, held_owner = left, owner[rows]
            read.append((rows, left))
        order = np.argsort(np.concatenate([rows for rows, _ in read]))
        state = _joined([state for _, state in read])
        if len(read) > 1:
            state = _rows_of(state, torch.from_numpy(order).to(device))
        return Forks(state, torch.from_numpy(source.reshape(-1)).to(device))

    def read_prompts(self, prompts: EhrMambaPrompts, forks: Forks) -> Float[Tensor, "question 2"]:
        """Logits of (false, true), each prompt a sequence of one word that goes on from its row."""
        asked = EhrMambaTokens.of_prompts(prompts).to(forks.source.device)
        hidden = self.backbone(
            self.embedding(asked), None, asked.cu_seqlens, state=_rows_of(forks.state, forks.source)
        )
        return self.answer(hidden)

    @torch.no_grad()
    def step_prompts(self, prompts: EhrMambaPrompts, forks: Forks) -> Float[Tensor, "question 2"]:
        """The same answers a step further, without gradients.

        Prompts name the row that they go on from and write to rows of their own, so the histories'
        rows stay as they were, for more questions or more words.
        """
        asked = EhrMambaTokens.of_prompts(prompts).to(forks.source.device)
        n_rows = len(forks.state)
        table = forks.state.with_rows(n_rows + len(prompts))
        target = torch.arange(n_rows, n_rows + len(prompts), device=forks.source.device)
        hidden = self.backbone.step(self.embedding(asked), None, table, forks.source, target)
        return self.answer(hidden)


def _rows_of(state: MambaState, rows: Tensor) -> MambaState:
    return MambaState(tuple(BlockState(*(held[rows] for held in b)) for b in state.blocks))


def _joined(states: list[MambaState]) -> MambaState:
    """Rows of several states below each other."""
    if len(states) == 1:
        return states[0]
    blocks = zip(*(state.blocks for state in states), strict=True)
    return MambaState(
        tuple(BlockState(*(torch.cat(held) for held in zip(*b, strict=True))) for b in blocks)
    )
