"""The text transformers: masks, rotary positions, pieces against the whole, conditioning, refusals, precision."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from sfumato import nets
from sfumato.errors import Refusal
from sfumato.nets import layers, masks, rotary
from sfumato.nets.masks import Block, Causal, Full
from sfumato.nets.text_transformer import EmbeddingTransformer, TextTransformer

VOCABULARY, LENGTH = 11, 16


def awake(net: nn.Module) -> nn.Module:
    """The network with its zero-initialised layers made random, so that every path has an effect."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            if not p.any():
                p.copy_(0.2 * torch.randn(p.shape, generator=generator))
    return net


def small(**settings: object) -> TextTransformer:
    torch.manual_seed(0)
    chosen = {"vocabulary": VOCABULARY, "length": LENGTH, "width": 16, "depth": 2, "heads": 2, **settings}
    net = nets.get("text-transformer", **chosen)
    assert isinstance(net, TextTransformer)
    awake(net)
    nn.init.normal_(net.embedding.weight, generator=torch.Generator().manual_seed(3))
    net.compute_dtype = torch.float32
    return net.eval()


def some(b: int = 3, n: int = LENGTH, seed: int = 2) -> Tensor:
    return torch.randint(0, VOCABULARY, (b, n), generator=torch.Generator().manual_seed(seed))


def times(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(4))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# -- what it gives


@pytest.mark.parametrize("n", [1, 5, 16])
@pytest.mark.parametrize("mask", ["full", "causal", "block:size=4"])
def test_any_length_up_to_its_own_gives_logits_for_every_place(n: int, mask: str) -> None:
    net = small(mask=mask, outputs=7)
    y = net(some(n=n), times(3))
    assert y.shape == (3, n, 7)
    assert y.dtype == torch.float32
    assert y.isfinite().all()
    assert y.std() > 0.1


@pytest.mark.parametrize("head", ["tied", "linear"])
@pytest.mark.parametrize("time", ["adaln", "none"])
def test_a_fresh_network_is_blocks_of_identity(time: str, head: str) -> None:
    net = TextTransformer(VOCABULARY, LENGTH, 16, 2, 2, time=time, head=head)
    net.compute_dtype = torch.float32
    x, t = some(), times(3)
    expected = net.embedding(x)
    expected = expected / (expected.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    logits = expected @ net.embedding.weight.T if head == "tied" else torch.zeros(3, LENGTH, VOCABULARY)
    close(net(x, t), logits)


def test_rows_are_independent() -> None:
    net = small(classes=3)
    x, t, label = some(4), times(4), torch.tensor([0, 3, 1, 2])
    together = net(x, t, {"label": label})
    for k in range(4):
        close(net(x[k : k + 1], t[k : k + 1], {"label": label[k : k + 1]})[0], together[k])


# -- masks


def influences(net: TextTransformer) -> Tensor:
    """[n, n]: whether changing the token at j changes the logits at i."""
    x, t = some(1), times(1)
    before = net(x, t)
    changed = []
    for j in range(LENGTH):
        other = x.clone()
        other[0, j] = (other[0, j] + 1) % VOCABULARY
        changed.append((net(other, t) - before).abs().amax((0, 2)))
    return torch.stack(changed, 1) > 1e-6


@pytest.mark.parametrize(
    ("mask", "expected"),
    [("full", lambda i, j: (i == i)), ("causal", lambda i, j: j <= i), ("block:size=4", lambda i, j: j // 4 <= i // 4),
     ("block:size=1", lambda i, j: j <= i)],
)  # fmt: skip
def test_a_place_is_moved_by_those_that_it_may_see_and_by_no_other(mask: str, expected: object) -> None:
    place = torch.arange(LENGTH)
    allowed = expected(place[:, None], place[None])  # type: ignore[operator]
    assert torch.equal(influences(small(mask=mask)), allowed.expand(LENGTH, LENGTH))


def test_the_paired_mask_is_the_one_of_block_diffusion() -> None:
    got = masks.paired_bias(Block(2), 4, torch.float32, torch.device("cpu")) == 0
    noisy, clean = [0, 1, 2, 3], [4, 5, 6, 7]
    seen = [set(row.nonzero()[:, 0].tolist()) for row in got]
    assert [seen[i] for i in noisy] == [{0, 1}, {0, 1}, {2, 3, 4, 5}, {2, 3, 4, 5}]
    assert [seen[i] for i in clean] == [{4, 5}, {4, 5}, {4, 5, 6, 7}, {4, 5, 6, 7}]


@pytest.mark.parametrize("words", ["full", "causal", "block:size=3"])
def test_a_mask_is_read_by_its_name(words: str) -> None:
    found = {"full": Full(), "causal": Causal(), "block:size=3": Block(3)}[words]
    assert masks.parse(words) == found
    assert isinstance(found, masks.Mask)


@pytest.mark.parametrize("limits", [(0, 0), (0, 10**6), (10**6, 10**6)])
def test_every_way_to_attend_gives_the_same(limits: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (torch.randn(5, 6, 4, requires_grad=True) for _ in range(3))
    bias = masks.bias(Causal(), 0, 6, torch.float32, torch.device("cpu"))
    expected = torch.softmax((q @ k.mT).masked_fill(~torch.ones(6, 6).tril().bool(), -torch.inf), -1) @ v
    monkeypatch.setattr(masks, "FEW", limits[0])
    monkeypatch.setattr(masks, "MANY", limits[1])
    monkeypatch.setattr(layers._Attend, "block", 72)  # two rows at a time
    got = masks.attend(q, k, v, bias)
    close(got, expected)
    weight = torch.randn(5, 6, 4)
    for a, b in zip(*(torch.autograd.grad((y * weight).sum(), (q, k, v)) for y in (got, expected)), strict=True):
        close(a, b)


@pytest.mark.parametrize("kept", [0, 10**6])
def test_masked_attention_has_exact_first_and_second_derivatives(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "KEPT", kept)
    q, k, v = (torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True) for _ in range(3))
    bias = masks.bias(Causal(), 0, 4, torch.float64, torch.device("cpu"))

    def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        y: Tensor = masks._Masked.apply(q, k, v, bias, True)[0]  # type: ignore[no-untyped-call]
        return y

    assert torch.autograd.gradcheck(masked, (q, k, v))
    assert torch.autograd.gradgradcheck(masked, (q, k, v))


# -- positions


def test_a_rotated_product_depends_on_the_distance_alone_and_lengths_stay() -> None:
    cos, sin = rotary.rotations(40, 8)
    q, k = torch.randn(8), torch.randn(8)
    queries, keys = (rotary.rotate(x.expand(40, 8), cos, sin) for x in (q, k))
    products = queries @ keys.T
    for shift in (1, 7, 20):
        close(products[shift:, shift:], products[:-shift, :-shift])
    assert (products[0] - products[5]).abs().max() > 0.1
    close(queries.norm(dim=1), q.norm().expand(40))
    close(products[3, 3], q @ k)


def test_order_matters_and_a_shifted_text_is_read_alike() -> None:
    net = small(mask="full", time="none", depth=1)
    x = some(1)
    assert (net(x.flip(1)).flip(1) - net(x)).abs().max() > 1e-2
    trunk, h = net.trunk, net.embedding(x[:, :8])
    near, far = (trunk(h, None, None, slice(first, first + 8)) for first in (0, 8))
    close(near, far)


# -- time and classes


def test_time_has_an_effect_where_it_is_read_and_none_elsewhere() -> None:
    x, t = some(), times(3)
    knows, ignores = small(time="adaln"), small(time="none")
    assert (knows(x, t) - knows(x, 1 - t)).abs().amax((1, 2)).min() > 1e-3
    assert torch.equal(ignores(x, t), ignores(x))
    assert torch.equal(ignores(x, times(3, 5)), ignores(x))
    with pytest.raises(Refusal, match="knows the time and was given none"):
        knows(x)


def test_one_time_for_all_spans_is_one_time_and_a_span_feels_its_own() -> None:
    net = small(mask="causal")
    x, t = some(), times(3)
    close(net(x, t[:, None].expand(3, 4)), net(x, t))
    later = t[:, None].repeat(1, 4)
    later[:, 2] = 1 - later[:, 2]
    moved = (net(x, later) - net(x, t[:, None].expand(3, 4))).abs().amax((0, 2)) > 1e-6
    assert moved.tolist() == [False] * 8 + [True] * 8
    with pytest.raises(Refusal, match=r"t of shape \[3, 5\] for 16 tokens"):
        net(x, times(3, 5))


@pytest.mark.parametrize("time", ["adaln", "none"])
def test_labels_have_an_effect_and_the_null_label_is_no_label(time: str) -> None:
    net = small(classes=5, time=time)
    x, t = some(), times(3)
    with_label, without = net(x, t, {"label": torch.tensor([0, 1, 4])}), net(x, t)
    assert (with_label - without).abs().amax((1, 2)).min() > 1e-3
    assert torch.equal(net(x, t, {"label": torch.full((3,), 5)}), without)
    assert torch.equal(net(x, t, {}), without)
    with pytest.raises(Refusal, match="without classes"):
        small()(x, t, {"label": torch.zeros(3, dtype=torch.int64)})


# -- pieces against the whole


@pytest.mark.parametrize("pieces", [(16,), (1,) * 16, (7, 1, 1, 5, 2)])
@pytest.mark.parametrize("time", ["adaln", "none"])
def test_reading_piece_by_piece_is_reading_the_whole(pieces: tuple[int, ...], time: str) -> None:
    net = small(mask="causal", time=time, classes=2)
    x, t, cond = some(), times(3), {"label": torch.tensor([1, 2, 0])}
    with torch.no_grad():
        whole, cache, first = net(x, t, cond), net.cache(3), 0
        for n in pieces:
            close(net.extend(x[:, first : first + n], cache, t, cond), whole[:, first : first + n])
            first += n
            assert cache.used == first


def test_the_next_logits_are_the_last_and_a_cache_can_be_rewound() -> None:
    net = small(mask="causal", time="none")
    x, other = some(), some(seed=5)
    with torch.no_grad():
        cache = net.cache(3)
        close(net.next_logits(x[:, :6], cache), net(x[:, :6])[:, -1])
        net.extend(other[:, 6:], cache)
        cache.rewind(6)
        close(net.next_logits(x[:, 6:9], cache), net(x[:, :9])[:, -1])


def test_block_diffusion_in_one_call_is_block_after_block() -> None:
    net = small(mask="block:size=4")
    noisy, clean, t = some(), some(seed=6), times(3, 4)
    with torch.no_grad():
        together, cache = net.blocks(noisy, clean, t), net.cache(3)
        for k in range(4):
            own = slice(4 * k, 4 * k + 4)
            tokens = torch.cat([clean[:, : 4 * k], noisy[:, own]], 1)
            alone = net(tokens, torch.cat([torch.zeros(3, k), t[:, k : k + 1]], 1))[:, own]
            close(together[:, own], alone)
            close(net.extend(noisy[:, own], cache, t[:, k]), alone)
            cache.rewind(4 * k)
            net.extend(clean[:, own], cache, torch.zeros(3))
    with torch.no_grad():
        close(net.blocks(noisy, clean, t[:, 0]), net.blocks(noisy, clean, t[:, :1].expand(3, 4)))


def test_a_noisy_block_never_sees_its_own_clean_tokens() -> None:
    net = small(mask="block:size=4", time="none")
    noisy, clean, other = some(), some(seed=6), some(seed=6)
    other[:, 8:12] = (other[:, 8:12] + 1) % VOCABULARY
    moved = (net.blocks(noisy, clean) - net.blocks(noisy, other)).abs().amax((0, 2)) > 1e-6
    assert moved.tolist() == [False] * 12 + [True] * 4


def test_pieces_that_do_not_fit_are_refused() -> None:
    causal, block, full = small(mask="causal", time="none"), small(mask="block:size=4", time="none"), small(time="none")
    with torch.no_grad():
        with pytest.raises(Refusal, match="'full' cannot read piece by piece"):
            full.extend(some(), full.cache(3))
        with pytest.raises(Refusal, match="'full' has no blocks"):
            full.blocks(some(), some())
        cache = block.cache(3)
        block.extend(some(n=3), cache)
        with pytest.raises(Refusal, match="3 tokens are read, which ends within a block of 4"):
            block.extend(some(n=1), cache)
        with pytest.raises(Refusal, match="rewind to 4 tokens of 3 read"):
            cache.rewind(4)
        cache = causal.cache(3)
        causal.extend(some(n=10), cache)
        with pytest.raises(Refusal, match="17 tokens for a network of length 16"):
            causal.extend(some(n=7), cache)
        with pytest.raises(Refusal, match=r"2 texts for a cache of 3; make it with net.cache\(2\)"):
            causal.extend(some(2, 1), cache)


# -- refusals


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"mask": "causl"}, "did you mean causal"), ({"mask": "block:size=0"}, "block:size=0"),
     ({"mask": "causal:size=2"}, "takes no settings"), ({"time": "film"}, "time 'film'"), ({"head": "ties"}, "tied"),
     ({"outputs": 12}, "outputs 12 for a vocabulary of 11"), ({"outputs": 0}, "outputs 0"),
     ({"heads": 3}, "3 heads do not divide width 16"), ({"heads": 16}, "into even parts"), ({"depth": 0}, "depth 0"),
     ({"dropout": 1.0}, "dropout 1.0"), ({"widht": 8}, "widht")],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object], expected: str) -> None:
    with pytest.raises(Refusal, match=expected) as error:
        small(**settings)
    assert "\n" not in str(error.value)


def test_tokens_of_another_vocabulary_and_too_long_a_text_are_refused() -> None:
    net = small()
    x = some()
    x[1, 2] = VOCABULARY
    with pytest.raises(Refusal, match=r"tokens \d+..11 for a network with a vocabulary of 11"):
        net(x, times(3))
    for n in (17, 0):
        with pytest.raises(Refusal, match=f"{n} tokens for a network of length 16"):
            net(some(n=n), times(3))


# -- settings, precision, training


def test_settings_survive_json_and_rebuild_the_network() -> None:
    net = small(mask="block:size=4", classes=2, outputs=7, head="linear", dropout=0.1)
    twin = TextTransformer(**json.loads(json.dumps(net.settings))).eval()
    twin.load_state_dict(net.state_dict())
    twin.compute_dtype = torch.float32
    assert twin.settings == net.settings
    assert torch.equal(twin(some(), times(3)), net(some(), times(3)))


def test_bfloat16_agrees_with_float32_and_float32_with_float64() -> None:
    net = small(width=64, heads=4)
    x, t = some(), times(3)
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        net.compute_dtype = dtype
        found[dtype] = net(x, t).detach()
    net.double().compute_dtype = torch.float64
    exact = net(x, t.double()).detach()
    assert exact.dtype == torch.float64
    for dtype, tolerance in ((torch.bfloat16, 0.05), (torch.float32, 1e-5)):
        assert float((found[dtype] - exact).norm() / exact.norm()) < tolerance


def test_dropout_acts_in_training_only() -> None:
    net = small(dropout=0.5)
    x, t = some(), times(3)
    assert not torch.equal(net.train()(x, t), net(x, t))
    assert torch.equal(net.eval()(x, t), net(x, t))


@pytest.mark.parametrize("head", ["tied", "linear"])
def test_every_parameter_learns(head: str) -> None:
    net = small(classes=2, head=head)
    net(some(), times(3), {"label": torch.tensor([0, 1, 2])}).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert all(float(p.grad.abs().max()) > 0 for p in net.parameters() if p.grad is not None)


def test_it_learns_to_repeat_what_came_before() -> None:
    """A causal network of one layer learns x[i + 1] = x[i] + 1: loss falls from ln 11 to nearly 0."""
    torch.manual_seed(0)
    net = TextTransformer(VOCABULARY, LENGTH, 32, 1, 2, mask="causal", time="none", head="linear")
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-2)
    start = torch.randint(0, VOCABULARY, (64, 1), generator=torch.Generator().manual_seed(0))
    x = (start + torch.arange(LENGTH + 1)) % VOCABULARY
    losses = []
    for _ in range(60):
        loss = nn.functional.cross_entropy(net(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert abs(losses[0] - 2.398) < 0.01
    assert losses[-1] < 0.1


# -- vectors


def test_the_network_for_vectors_has_the_same_trunk() -> None:
    net = nets.get(
        "embedding-transformer", inputs=3, outputs=5, length=LENGTH, width=16, depth=2, heads=2, mask="causal"
    )
    assert isinstance(net, EmbeddingTransformer)
    x, t = torch.randn(2, LENGTH, 3), times(2)
    assert not net(x, t).any()
    awake(net)
    net.compute_dtype = torch.float32
    y = net(x, t)
    assert y.shape == (2, LENGTH, 5)
    other = x.clone()
    other[:, 9] += 1
    moved = (net(other, t) - y).abs().amax((0, 2)) > 1e-6
    assert moved.tolist() == [False] * 9 + [True] * 7
    close(net(x[:1], t[:1])[0], y[0])
    twin = EmbeddingTransformer(**json.loads(json.dumps(net.settings)))
    twin.load_state_dict(net.state_dict())
    with pytest.raises(Refusal, match="inputs 0"):
        EmbeddingTransformer(0, 5)
    with pytest.raises(Refusal, match="17 tokens"):
        net(torch.randn(1, 17, 3), times(1))


def test_muon_trains_the_matrices_between_hidden_states() -> None:
    from sfumato.training.optim import Optimiser, hidden
    from sfumato.training.settings import Optimisation

    net = TextTransformer(9, 8, width=32, depth=2, heads=2, time="none")
    names = {f"trunk.blocks.{k}.{layer}.weight" for k in range(2) for layer in ("qkv", "out", "up", "down")}
    assert hidden(net) == names
    optimiser = Optimiser(net, Optimisation(optimiser="muon", warmup=0))
    assert set(optimiser.parts[1].names) == names
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    x = torch.randint(0, 9, (4, 8), generator=torch.Generator().manual_seed(0))
    loss = torch.nn.functional.cross_entropy(net(x).flatten(0, 1), x.flatten())
    torch.autograd.backward([loss])
    optimiser.apply(1, 0.0)
    moved = net.get_parameter("trunk.blocks.0.out.weight").detach() - before["trunk.blocks.0.out.weight"]
    values = torch.linalg.svdvals(moved)  # an orthogonal step: those of the gradient's own rank are alike
    assert float(values[4] / values[0]) > 0.5
