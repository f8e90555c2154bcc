"""Code vectors share along their parents and words, and are their own where that is off."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tsfm.batches.batch import Batch, make_batch
from tsfm.errors import InputError
from tsfm.models.code_embedding import (
    MOST_PARENTS,
    MOST_WORDS,
    RARE,
    CodeSharing,
    hashed_words,
    nearest_parents,
)
from tsfm.models.embeddings import EventEmbedding

NAMES = (
    "UNK",
    "DIAGNOSIS",
    "DIAGNOSIS//ICD//10//I50",
    "DIAGNOSIS//ICD//10//I5023",
    "DIAGNOSIS//ICD//10//I5022",
    "LAB",
    "LAB//50912",
    "LAB//50912//mg/dL",
    "MEDICATION//ATC//C03CA01",
)
UNK, DIAGNOSIS, I50, I5023, I5022, LAB, CREATININE, MG_DL, FUROSEMIDE = range(9)
COUNTS = np.array([0, 0, 0, 0, 100, 0, 0, 900, 1])
WIDTH = 6


def make_tables(n: int = 2) -> list[nn.Embedding]:
    torch.manual_seed(0)
    return [nn.Embedding(len(NAMES), WIDTH) for _ in range(n)]


def make_sharing(descriptions: dict[str, str] | None = None) -> CodeSharing:
    sharing = CodeSharing(len(NAMES), WIDTH, n_word_buckets=64 if descriptions else 0)
    sharing.set_codes(NAMES, descriptions)
    return sharing


def vector(sharing: CodeSharing, tables: list[nn.Embedding], code: int) -> Tensor:
    return sharing(torch.tensor([code]), tables)[0][0]


def make_tokens(codes: list[int]) -> Batch:
    n = len(codes)
    rng = np.random.default_rng(0)
    return make_batch(
        code=np.array(codes, np.int32),
        value=rng.normal(size=n).astype(np.float32),
        bin=rng.integers(1, 11, n).astype(np.int8),
        time_s=1.5e9 + np.cumsum(rng.exponential(3e4, n)),
        lag_hours=rng.exponential(1.0, n).astype(np.float32),
        lengths=np.array([n]),
        subject_id=np.array([1]),
        birth_s=np.array([0.0]),
        step=np.ones(len(NAMES), np.float32),
    )


def test_a_code_is_the_sum_of_its_line() -> None:
    tables = make_tables()
    found = make_sharing()(torch.tensor([[I5023, UNK], [MG_DL, I5023]]).flatten(), tables)
    lines = ([I5023, I50, DIAGNOSIS], [UNK], [MG_DL, CREATININE, LAB])
    for table, own in zip(tables, found, strict=True):
        sums = [table.weight[line].sum(0) for line in (*lines, lines[0])]
        torch.testing.assert_close(own, torch.stack(sums))


def test_a_code_that_training_never_saw_has_its_parents_vector_exactly() -> None:
    tables, sharing = make_tables(), make_sharing()
    sharing.shrink(tables, COUNTS)
    optimizer = torch.optim.AdamW([t.weight for t in tables], lr=0.1, weight_decay=0.0)
    for _ in range(5):
        optimizer.zero_grad()
        found = torch.cat(sharing(torch.tensor([I5022, MG_DL]), tables))
        found.square().sum().backward()
        optimizer.step()
    assert torch.equal(vector(sharing, tables, I5023), vector(sharing, tables, I50))
    assert not torch.equal(vector(sharing, tables, I5022), vector(sharing, tables, I50))


def test_own_vectors_start_the_smaller_the_rarer_their_codes() -> None:
    tables, sharing = make_tables(), make_sharing()
    before = tables[0].weight.detach().clone()
    sharing.shrink(tables, COUNTS)
    share = (tables[0].weight / before).mean(1).detach()
    torch.testing.assert_close(share[MG_DL], torch.tensor((900 / (900 + RARE) / 3) ** 0.5))
    torch.testing.assert_close(share[LAB], torch.tensor((900 / (900 + RARE)) ** 0.5))
    torch.testing.assert_close(share[FUROSEMIDE], torch.tensor((1 / (1 + RARE)) ** 0.5))
    assert share[I5023] == 0


def test_a_gradient_reaches_parents_and_no_siblings() -> None:
    tables, sharing = make_tables(1), make_sharing()
    vector(sharing, tables, I5023).sum().backward()
    gradient = tables[0].weight.grad
    assert gradient is not None
    assert torch.nonzero(gradient.sum(1)).flatten().tolist() == [DIAGNOSIS, I50, I5023]


def test_words_are_shared_across_branches_and_start_at_nothing() -> None:
    texts = {
        NAMES[I5023]: "Acute on chronic heart failure",
        NAMES[FUROSEMIDE]: "Furosemide, for HEART failure",
    }
    tables, sharing = make_tables(), make_sharing(texts)
    plain = make_sharing()
    ids = torch.tensor([I5023, FUROSEMIDE, LAB])
    for with_words, without in zip(sharing(ids, tables), plain(ids, tables), strict=True):
        assert torch.equal(with_words, without)
    assert sharing.word is not None
    with torch.no_grad():
        sharing.word.weight[hashed_words("heart", 64)[0]] = 1.0
    change = sharing(ids, tables)[0] - plain(ids, tables)[0]
    torch.testing.assert_close(change[0], torch.full((WIDTH,), 1 / 5))
    torch.testing.assert_close(change[1], torch.full((WIDTH,), 1 / 4))
    assert float(change[2].detach().abs().max()) == 0
    assert torch.equal(sharing(ids, tables)[1], plain(ids, tables)[1])


def test_words_are_hashed_alike_everywhere() -> None:
    assert hashed_words("Heart failure; heart", 4096) == [3042, 920]
    assert len(hashed_words(" ".join(map(str, range(99))), 4096)) == MOST_WORDS
    assert hashed_words("", 4096) == []


def test_parents_are_the_nearest_that_there_are() -> None:
    assert nearest_parents(NAMES).tolist() == [-1, -1, 1, 2, 2, -1, 5, 6, -1]


def test_a_circle_of_parents_ends() -> None:
    tables, sharing = make_tables(1), make_sharing()
    with torch.no_grad():
        sharing.parent[LAB] = MG_DL
    assert bool(vector(sharing, tables, MG_DL).isfinite().all())
    assert sharing._line(torch.tensor([MG_DL])).shape == (1, MOST_PARENTS + 1)


def test_parents_and_words_are_kept_with_the_weights() -> None:
    texts = {NAMES[I50]: "Heart failure"}
    first, second = make_sharing(texts), CodeSharing(len(NAMES), WIDTH, n_word_buckets=64)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.parent, second.parent)
    assert torch.equal(first.words, second.words)
    assert all(t.is_floating_point() for t in first.state_dict().values())


def test_names_and_counts_of_another_vocabulary_are_refused() -> None:
    with pytest.raises(InputError):
        make_sharing().set_codes(NAMES[1:])
    with pytest.raises(InputError):
        make_sharing().shrink(make_tables(), COUNTS[1:])


def test_an_embedding_without_parents_is_the_plain_one() -> None:
    torch.manual_seed(0)
    plain = EventEmbedding(len(NAMES), WIDTH)
    sharing = EventEmbedding(len(NAMES), WIDTH, sharing=CodeSharing(len(NAMES), WIDTH))
    assert set(sharing.state_dict()) - set(plain.state_dict()) == {"sharing.parent"}
    sharing.load_state_dict(plain.state_dict(), strict=False)
    batch = make_tokens([I5023, MG_DL, MG_DL, UNK])
    assert torch.equal(plain(batch), sharing(batch))


def test_what_a_value_means_is_shared_as_well() -> None:
    torch.manual_seed(0)
    embedding = EventEmbedding(len(NAMES), WIDTH, sharing=make_sharing())
    sharing = embedding.sharing
    assert sharing is not None
    sharing.shrink(embedding.code_tables, COUNTS)
    batch = make_tokens([I5023, LAB])
    unseen = dataclasses.replace(batch, code=torch.tensor([I50, LAB]))
    torch.testing.assert_close(embedding(batch), embedding(unseen))
