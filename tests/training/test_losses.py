"""The tiled losses against their formulas, written out; and W ranks against one."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import log_softmax, logsigmoid, normalize
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from freezealign import LogitScale
from freezealign.training.losses import ContrastiveLoss, SigmoidLoss

LOSSES = [ContrastiveLoss, SigmoidLoss]


def contrastive(first, second, scale, positive):
    """InfoNCE in both directions with every logit at once; ``positive`` is (B, M)."""
    logits = first @ second.T / scale.temperature
    rows = (log_softmax(logits, 1) * positive).sum(1) / positive.sum(1)
    columns = (log_softmax(logits, 0) * positive).sum(0) / positive.sum(0)
    return -(rows.mean() + columns.mean()) / 2


def sigmoid(first, second, scale, positive):
    """The sigmoid loss with every logit at once."""
    logits = first @ second.T / scale.temperature + scale.bias
    return -logsigmoid(torch.where(positive, logits, -logits)).sum() / len(first)


PLAIN = {ContrastiveLoss: contrastive, SigmoidLoss: sigmoid}


def embeddings(seed: int, rows: int, columns: int, dim: int, dtype=torch.float64):
    """Two batches of unit vectors that want gradients."""
    generator = torch.Generator().manual_seed(seed)
    batches = (torch.randn(size, dim, generator=generator, dtype=torch.float64) for size in (rows, columns))
    return [normalize(batch, dim=1).to(dtype).requires_grad_() for batch in batches]


def all_gradients(loss, *inputs):
    """The loss and its gradients, in float64."""
    return [loss.detach().double(), *(g.double() for g in torch.autograd.grad(loss, inputs))]


def parameters(loss_class, scale):
    """What of the scale takes part in the loss."""
    return [scale.temperature] if loss_class is ContrastiveLoss else [scale.temperature, scale.bias]


@st.composite
def id_pairs(draw):
    """Ids of two batches: every id is in both, some more than once."""
    groups = draw(st.integers(1, 9))
    more = st.lists(st.integers(0, groups - 1), max_size=30)
    sides = [draw(st.permutations([*range(groups), *draw(more)])) for _ in range(2)]
    return [torch.tensor(side) * 7 - 3 for side in sides]


@st.composite
def batches(draw):
    """Ids or None, and the sizes of both batches."""
    ids = draw(st.none() | id_pairs())
    size = draw(st.integers(1, 40))
    return ids, [size, size] if ids is None else [len(side) for side in ids]


@pytest.mark.parametrize("loss_class", LOSSES)
@pytest.mark.parametrize(("dtype", "coldest", "tolerance"), [(torch.float64, 0.01, 1e-10), (torch.float32, 0.05, 1e-5)])
@settings(max_examples=60)
@given(
    batch=batches(),
    dim=st.integers(1, 16),
    tile_size=st.integers(1, 45),
    heat=st.floats(0, 1),
    bias=st.floats(-12, 12),
    seed=st.integers(0, 99),
)
def test_tiles_give_the_formula_and_its_gradients(
    loss_class, dtype, coldest, tolerance, batch, dim, tile_size, heat, bias, seed
):
    ids, (rows, columns) = batch
    scale = LogitScale(coldest + (0.5 - coldest) * heat, maximum=0.51, bias=bias).to(dtype)
    first, second = embeddings(seed, rows, columns, dim, dtype)
    inputs = [first, second, *parameters(loss_class, scale)]
    found = all_gradients(loss_class(tile_size)(first, second, scale, *(ids or [])), *inputs)

    exact = LogitScale(maximum=0.51, bias=bias).double()
    exact.load_state_dict(scale.state_dict())
    first, second = (batch.detach().double().requires_grad_() for batch in (first, second))
    positive = torch.eye(rows) > 0 if ids is None else ids[0][:, None] == ids[1]
    inputs = [first, second, *parameters(loss_class, exact)]
    expected = all_gradients(PLAIN[loss_class](first, second, exact, positive), *inputs)

    heat, pairs_a_row = exact.temperature.item(), 1 if loss_class is ContrastiveLoss else columns
    sizes = [pairs_a_row * (1 / heat + abs(bias)), 1 / heat, 1 / heat, pairs_a_row / heat**2, pairs_a_row]
    for value, reference, size in zip(found, expected, sizes):
        torch.testing.assert_close(value, reference, rtol=0, atol=tolerance * size)


@pytest.mark.parametrize("tile_size", [2, 100])
@pytest.mark.parametrize("ids", [[], [torch.tensor([4, 1, 1, 9]), torch.tensor([1, 9, 4, 9, 4])]])
@pytest.mark.parametrize("loss_class", LOSSES)
def test_gradients_are_those_of_finite_differences(loss_class, ids, tile_size):
    scale, loss = LogitScale(0.3, bias=-1.0).double(), loss_class(tile_size)
    inputs = [*embeddings(0, 4, len(ids[1]) if ids else 4, 3), *parameters(loss_class, scale)]
    assert torch.autograd.gradcheck(lambda first, second, *_: loss(first, second, scale, *ids), inputs)


def test_row_i_belongs_to_row_i():
    scale, (first, second) = LogitScale(), embeddings(0, 8, 8, 16)
    matched = ContrastiveLoss()(first, first, scale)
    assert matched < ContrastiveLoss()(first, second, scale)
    assert matched < ContrastiveLoss()(first, first.roll(1, 0), scale)


def test_a_second_caption_is_no_negative():
    scale, (images, _) = LogitScale(), embeddings(0, 4, 4, 64)
    captions, ids = images.repeat(2, 1), torch.arange(4)
    # Every image finds both captions, each at half the probability: log 2. Every caption finds its image: nearly 0.
    loss = ContrastiveLoss()(images, captions, scale, ids, ids.repeat(2))
    assert loss.item() == pytest.approx(torch.log(torch.tensor(2.0)).item() / 2, abs=1e-2)
    assert loss < ContrastiveLoss()(images, captions, scale, torch.arange(4), torch.arange(8) % 5 % 4)


def test_a_row_without_positives_only_repels_in_the_sigmoid_loss():
    scale, (first, second) = LogitScale(bias=0.0).double(), embeddings(0, 3, 2, 4)
    found = SigmoidLoss()(first, second, scale, torch.tensor([0, 1, 5]), torch.tensor([0, 1]))
    torch.testing.assert_close(found, sigmoid(first, second, scale, torch.eye(3, 2) > 0))


@pytest.mark.parametrize("tile_size", [3, 64])
@pytest.mark.parametrize("loss_class", LOSSES)
def test_the_coldest_temperature_gives_finite_numbers(loss_class, tile_size):
    scale, (first, second) = LogitScale(0.001, bias=-10.0), embeddings(0, 32, 32, 8, torch.float32)
    for matches in (first, -first, second):
        loss = loss_class(tile_size)(first, matches, scale)
        assert all(part.isfinite().all() for part in all_gradients(loss, first, *parameters(loss_class, scale)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss_class", LOSSES)
def test_half_precision_is_summed_in_float32(loss_class, dtype):
    scale, (first, second) = LogitScale(bias=-10.0), embeddings(0, 40, 40, 16, dtype)
    loss = loss_class(16)(first, second, scale)
    wide = loss_class(16)(first.float(), second.float(), scale)
    assert (loss.dtype, loss.item()) == (torch.float32, wide.item())
    assert torch.autograd.grad(loss, first)[0].dtype == dtype


@pytest.mark.parametrize("tile_size", [16, 64])
@pytest.mark.parametrize("loss_class", LOSSES)
def test_autocast_changes_nothing(loss_class, tile_size):
    scale, (first, second) = LogitScale(bias=-10.0), embeddings(0, 40, 40, 16, torch.float32)
    inputs = [first, second, *parameters(loss_class, scale)]
    expected = all_gradients(loss_class(tile_size)(first, second, scale), *inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = all_gradients(loss_class(tile_size)(first, second, scale), *inputs)
    assert all(torch.equal(*pair) for pair in zip(found, expected))


@pytest.mark.parametrize("tile_size", [16, 64])
@pytest.mark.parametrize("loss_class", LOSSES)
def test_a_graph_that_is_kept_gives_the_same_gradients_twice(loss_class, tile_size):
    scale, (first, second) = LogitScale(bias=-10.0), embeddings(0, 40, 40, 16)
    loss = loss_class(tile_size)(first, second, scale)
    once, twice = (torch.autograd.grad(loss, [first, second], retain_graph=True) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(once, twice))


class Largest(TorchDispatchMode):
    """Remembers the most elements that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, (tuple, list)) else [output]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return output


@pytest.mark.parametrize("with_ids", [False, True])
@pytest.mark.parametrize("loss_class", LOSSES)
def test_memory_grows_with_the_batch_and_not_with_its_square(loss_class, with_ids):
    size, dim, tile_size, saved = 600, 4, 32, {}
    scale, (first, second) = LogitScale(bias=-10.0), embeddings(0, size, size, dim, torch.float32)
    ids = [torch.arange(size) // 2] * 2 if with_ids else []

    def remember(tensor):
        saved[tensor.data_ptr()] = tensor.numel()
        return tensor

    with Largest() as largest:
        with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
            loss = loss_class(tile_size)(first, second, scale, *ids)
        loss.backward()
    assert size * dim * 2 <= sum(saved.values()) <= size * dim * 5
    assert largest.elements == size * dim > tile_size**2


@pytest.mark.parametrize("loss_class", LOSSES)
def test_batches_that_do_not_fit_are_refused(loss_class):
    scale, loss, ids = LogitScale(bias=-10.0), loss_class(), torch.arange(3)
    with pytest.raises(ValueError, match=r"must have one shape, got \(3, 4\) and \(2, 4\)"):
        loss(torch.ones(3, 4), torch.ones(2, 4), scale)
    with pytest.raises(ValueError, match=r"\(B, d\) and \(M, d\), got \(3, 4\) and \(3, 5\)"):
        loss(torch.ones(3, 4), torch.ones(3, 5), scale, ids, ids)
    with pytest.raises(ValueError, match=r"\(B, d\) and \(M, d\), got \(4,\)"):
        loss(torch.ones(4), torch.ones(4), scale)
    with pytest.raises(ValueError, match="empty"):
        loss(torch.ones(0, 4), torch.ones(0, 4), scale)
    with pytest.raises(ValueError, match="both batches"):
        loss(torch.ones(3, 4), torch.ones(3, 4), scale, ids)
    with pytest.raises(ValueError, match=r"one a row, got \(3,\) for \(2, 4\)"):
        loss(torch.ones(3, 4), torch.ones(2, 4), scale, ids, ids)


@pytest.mark.parametrize("ids", [([0, 1, 2], [0, 1]), ([0, 1], [0, 1, 2])])
def test_a_row_without_a_positive_is_refused(ids):
    first, second = (torch.tensor(side) for side in ids)
    with pytest.raises(ValueError, match="1 of 3 ids"):
        ContrastiveLoss()(torch.ones(len(first), 4), torch.ones(len(second), 4), LogitScale(), first, second)


def test_the_sigmoid_loss_names_the_bias_it_misses():
    with pytest.raises(ValueError, match=r"LogitScale\(temperature=0.1, bias=-10.0\)"):
        SigmoidLoss()(torch.ones(2, 4), torch.ones(2, 4), LogitScale())


@pytest.mark.parametrize("loss_class", LOSSES)
def test_a_tile_has_a_row(loss_class):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        loss_class(tile_size=0)


RANKS, ROWS, COLUMNS = 2, 5, 7
# Ids of the whole batch: one rank's rows have positives among the other's columns, and there only.
IDS = [[0, 0, 1, 2, 3, 4, 5, 2, 5, 6], [4, 5, 0, 1, 2, 2, 5, 1, 3, 6, 0, 4, 4, 6]]
CASES = {
    (loss_class.__name__, with_ids, spread): (loss_class, with_ids, spread)
    for loss_class in LOSSES
    for with_ids, spread in [(False, True), (True, True), (False, False)]
}


class Projectors(nn.Module):
    """The smallest model there is to train."""

    def __init__(self, loss_class):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 4).double(), nn.Linear(6, 4).double()
        self.logit_scale = LogitScale(0.3, bias=-2.0 if loss_class is SigmoidLoss else None).double()

    def forward(self, first, second):
        return normalize(self.first(first), dim=1), normalize(self.second(second), dim=1)


def whole_batch(with_ids):
    """The inputs of all ranks, and their ids."""
    generator = torch.Generator().manual_seed(1)
    columns = COLUMNS if with_ids else ROWS
    inputs = [torch.randn(RANKS * size, 6, generator=generator, dtype=torch.float64) for size in (ROWS, columns)]
    return inputs, [torch.tensor(side) for side in IDS] if with_ids else []


def loss_and_gradients(model, case, inputs, ids):
    """Run one step of ``model``, DDP or not."""
    loss_class, _, spread = case
    loss = loss_class(tile_size=3, global_negatives=spread)(
        *model(*inputs), getattr(model, "module", model).logit_scale, *ids
    )
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters())]


def error_of(call):
    """What ``call`` raises, as text."""
    try:
        call()
    except ValueError as error:
        return str(error)
    return "nothing"


def work(rank, folder):
    """Compute every case on one rank, its part of the batch in hand."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    results = {}
    for name, case in CASES.items():
        inputs, ids = whole_batch(case[1])
        mine = [[side.chunk(RANKS)[rank] for side in sides] for sides in (inputs, ids)]
        results[name] = loss_and_gradients(DistributedDataParallel(Projectors(case[0])), case, *mine)
    scale, uneven, even = LogitScale(), torch.eye(4)[: 2 + rank], torch.eye(4)
    results["uneven"] = error_of(lambda: ContrastiveLoss()(uneven, uneven, scale))
    alone = torch.arange(4) + 9 * rank * torch.arange(4)
    results["lonely"] = error_of(lambda: ContrastiveLoss()(even, even, scale, torch.arange(4), alone))
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_train_as_one(ranks, name):
    """DDP's gradients, and the mean of the losses, are those of one process with the whole batch."""
    case = CASES[name]
    losses, *gradients = loss_and_gradients(Projectors(case[0]), case, *whole_batch(case[1]))
    found = [[losses_of[name][0] for losses_of in ranks], *ranks[0][name][1:]]
    same = [torch.allclose(sum(found[0]) / RANKS, losses, atol=1e-12, rtol=0)]
    same += [torch.allclose(*pair, atol=1e-12, rtol=0) for pair in zip(found[1:], gradients, strict=True)]
    assert same == [case[2]] * len(same)


@pytest.mark.parametrize("loss_class", LOSSES)
def test_local_negatives_are_those_of_the_rank(ranks, loss_class):
    (first, second), _ = whole_batch(False)
    for rank, results in enumerate(ranks):
        mine = [side.chunk(RANKS)[rank] for side in (first, second)]
        name = (loss_class.__name__, False, False)
        torch.testing.assert_close(
            results[name][0], loss_and_gradients(Projectors(loss_class), CASES[name], mine, [])[0]
        )


def test_every_rank_refuses_batches_of_different_sizes(ranks):
    assert all(
        "one size" in results["uneven"] and "[2, 4, 2, 0], [3, 4, 3, 0]" in results["uneven"] for results in ranks
    )


def test_every_rank_refuses_a_row_without_a_positive(ranks):
    assert [results["lonely"][:11] for results in ranks] == ["3 of 7 ids "] * RANKS
