"""The trainable maps, against the paper's numbers and an independent restatement of its formulas."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from freezealign import FreezeAlign, FrozenEncoder, LogitScale, Pooling, ProjectionHead, TokenProjector

PAPER_TRAINABLE = 11_553_793
PAPER_TOKEN = 3_150_848
PAPER_MLP = 2_101_248

widths = st.integers(1, 12)
quick = settings(max_examples=25, deadline=None)


def count(*blocks: torch.nn.Module) -> int:
    return sum(parameter.numel() for block in blocks for parameter in block.parameters())


def scrambled(block: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Give every parameter a random value, so that no initial 0 or 1 (of a norm, say) can hide a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return block.eval()


# The paper's formulas, written from paper.md with nothing but torch.nn.functional.


def paper_token(weights: dict[str, torch.Tensor], prefix: str, x: torch.Tensor) -> torch.Tensor:
    def w(name: str) -> torch.Tensor:
        return weights[f"{prefix}{name}"]

    normed = F.layer_norm(x, (x.shape[-1],), w("prepare.0.weight"), w("prepare.0.bias"), eps=1e-5)
    straight = F.linear(normed, w("linear.weight"), w("linear.bias"))
    hidden = F.gelu(F.linear(normed, w("nonlinear.0.weight"), w("nonlinear.0.bias")), approximate="none")
    return straight + F.linear(hidden, w("nonlinear.2.weight"), w("nonlinear.2.bias"))


def paper_mlp(weights: dict[str, torch.Tensor], prefix: str, x: torch.Tensor) -> torch.Tensor:
    def w(name: str) -> torch.Tensor:
        return weights[f"{prefix}{name}"]

    p = F.linear(x, w("projection.weight"), w("projection.bias"))
    refined = F.linear(F.gelu(p, approximate="none"), w("refine.1.weight"), w("refine.1.bias"))
    return F.layer_norm(refined + p, (p.shape[-1],), w("norm.weight"), w("norm.bias"), eps=1e-5)


# Golden numbers of the paper


def test_token_projector_has_the_papers_parameter_count():
    assert count(TokenProjector(1024, 1024)) == PAPER_TOKEN


def test_cls_gets_a_second_projector_of_its_own():
    assert count(TokenProjector(1024, 1024, cls=True)) == 2 * PAPER_TOKEN


def test_projection_head_has_the_papers_parameter_count():
    assert count(ProjectionHead(1024, 1024)) == PAPER_MLP


def test_pooling_has_no_parameters():
    assert count(Pooling("cls+patch_mean")) == 0


def test_paper_pair_has_the_papers_parameter_count_as_blocks():
    image = [TokenProjector(1024, 1024, cls=True), Pooling("cls+patch_mean")]
    text = [TokenProjector(1024, 1024), Pooling("mean"), ProjectionHead(1024, 1024, kind="mlp")]
    assert count(*image, *text, LogitScale()) == PAPER_TRAINABLE


@pytest.fixture(scope="module")
def paper_model(bert_folder) -> FreezeAlign:
    """DINOv2-L and RoBERTa-L at full size, without memory for their weights."""
    from transformers import AutoTokenizer, Dinov2Config, Dinov2Model, RobertaConfig, RobertaModel

    from freezealign.encoders.transformers import TransformersTextEncoder, TransformersVisionEncoder

    with torch.device("meta"):
        vision = Dinov2Model(
            Dinov2Config(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, patch_size=14, image_size=518)
        )
        text = RobertaModel(
            RobertaConfig(
                vocab_size=50265,
                hidden_size=1024,
                num_hidden_layers=24,
                num_attention_heads=16,
                intermediate_size=4096,
                max_position_embeddings=514,
                type_vocab_size=1,
            )
        )
    tokenizer = AutoTokenizer.from_pretrained(bert_folder)
    encoders = [
        FrozenEncoder(TransformersVisionEncoder(vision, None)),
        FrozenEncoder(TransformersTextEncoder(text, tokenizer)),
    ]
    return FreezeAlign(encoders, device="meta")


def test_paper_pair_has_the_papers_parameter_count_as_a_model(paper_model):
    assert paper_model.num_parameters(only_trainable=True) == PAPER_TRAINABLE


def test_paper_pair_trains_less_than_two_percent_of_its_parameters(paper_model):
    assert paper_model.num_parameters(only_trainable=True) / paper_model.num_parameters() == pytest.approx(
        0.017, abs=0.001
    )


def test_paper_pair_shares_a_space_of_width_1024(paper_model):
    assert paper_model.get_embedding_dimension() == 1024


# The formulas


@quick
@given(width=widths, dim=widths, batch=st.integers(1, 4), tokens=st.integers(1, 6), seed=st.integers(0, 99))
def test_token_projector_equals_the_papers_formula(width, dim, batch, tokens, seed):
    block = scrambled(TokenProjector(width, dim, cls=True), seed)
    x, cls = torch.randn(batch, tokens, width), torch.randn(batch, width)
    output = block({"token_embeddings": x, "cls_token_embeddings": cls})
    weights = block.state_dict()
    torch.testing.assert_close(
        output["token_embeddings"], paper_token(weights, "tokens.", x), atol=1e-6, rtol=1e-6, check_stride=False
    )
    torch.testing.assert_close(
        output["cls_token_embeddings"], paper_token(weights, "cls_token.", cls), atol=1e-6, rtol=1e-6
    )


@quick
@given(width=widths, dim=widths, batch=st.integers(1, 5), seed=st.integers(0, 99))
def test_projection_head_equals_the_papers_formula(width, dim, batch, seed):
    block = scrambled(ProjectionHead(width, dim, kind="mlp"), seed)
    x = torch.randn(batch, width)
    output = block({"sentence_embedding": x})["sentence_embedding"]
    torch.testing.assert_close(output, paper_mlp(block.state_dict(), "projection.", x), atol=1e-6, rtol=1e-6)


@quick
@given(width=widths, dim=widths, seed=st.integers(0, 99))
def test_linear_kind_is_one_affine_map(width, dim, seed):
    block = scrambled(TokenProjector(width, dim, kind="linear"), seed)
    x = torch.randn(2, 3, width)
    expected = x @ block.state_dict()["tokens.weight"].T + block.state_dict()["tokens.bias"]
    torch.testing.assert_close(block({"token_embeddings": x})["token_embeddings"], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("block", [TokenProjector(5, 5, kind="identity", cls=True), ProjectionHead(5, 5, "identity")])
def test_identity_kind_changes_nothing_and_has_nothing_to_train(block):
    features = {name: torch.randn(2, 3, 5) for name in ("token_embeddings", "sentence_embedding")}
    features["cls_token_embeddings"] = torch.randn(2, 5)
    output = block(features)
    for key in ("token_embeddings", "cls_token_embeddings", "sentence_embedding"):
        if key in output:
            assert torch.equal(output[key], features[key])
    assert count(block) == 0


def test_each_token_is_projected_on_its_own():
    block = scrambled(TokenProjector(4, 6), 0)
    x = torch.randn(2, 5, 4)
    together = block({"token_embeddings": x})["token_embeddings"]
    alone = torch.cat([block({"token_embeddings": x[:, t : t + 1]})["token_embeddings"] for t in range(5)], 1)
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-6)


def test_local_and_cls_projectors_do_not_share_weights():
    block = TokenProjector(4, 4, cls=True).eval()
    x = torch.randn(2, 4)
    output = block({"token_embeddings": x[:, None], "cls_token_embeddings": x})
    assert not torch.allclose(output["token_embeddings"][:, 0], output["cls_token_embeddings"])


@pytest.mark.parametrize("block", [TokenProjector(64, 8), ProjectionHead(64, 8)])
def test_dropout_is_active_in_training_only(block):
    features = {"token_embeddings": torch.randn(1, 3, 64), "sentence_embedding": torch.randn(3, 64)}
    key = "token_embeddings" if isinstance(block, TokenProjector) else "sentence_embedding"
    block.train()
    assert not torch.equal(block(features)[key], block(features)[key])
    block.eval()
    assert torch.equal(block(features)[key], block(features)[key])


def test_unprojected_cls_is_dropped():
    features = {"token_embeddings": torch.randn(1, 2, 4), "cls_token_embeddings": torch.randn(1, 4)}
    assert "cls_token_embeddings" not in TokenProjector(4, 3)(features)


def test_input_dict_is_left_as_it_was():
    x = torch.randn(1, 2, 4)
    features = {"token_embeddings": x, "cls_token_embeddings": torch.randn(1, 4)}
    TokenProjector(4, 3, cls=True)(features)
    assert features["token_embeddings"] is x
    assert set(features) == {"token_embeddings", "cls_token_embeddings"}


# The whole wiring, from pixels and token ids to unit vectors


def test_image_tower_equals_the_papers_wiring(model, dinov2_folder, images):
    from transformers import Dinov2Model

    batch = model.tower("image").encoder.preprocess(images[:3])
    hidden = Dinov2Model.from_pretrained(dinov2_folder).eval()(**batch).last_hidden_state
    scrambled(projector := model.tower("image").blocks[0], 1)
    weights = projector.state_dict()
    patches = paper_token(weights, "tokens.", hidden[:, 1:]).mean(1)
    expected = F.normalize(patches + paper_token(weights, "cls_token.", hidden[:, 0]), dim=-1)
    torch.testing.assert_close(model({"image": batch})["image"], expected, atol=1e-6, rtol=0)


def test_text_tower_equals_the_papers_wiring(model, bert_folder, texts):
    from transformers import BertModel

    batch = model.tower("text").encoder.preprocess(texts[:4])
    hidden = BertModel.from_pretrained(bert_folder).eval()(**batch).last_hidden_state
    projector, _, head = (scrambled(block, seed) for seed, block in enumerate(model.tower("text").blocks))
    projected = paper_token(projector.state_dict(), "tokens.", hidden)
    pooled = torch.stack([row[mask.bool()].mean(0) for row, mask in zip(projected, batch["attention_mask"])])
    expected = F.normalize(paper_mlp(head.state_dict(), "projection.", pooled), dim=-1)
    torch.testing.assert_close(model({"text": batch})["text"], expected, atol=1e-6, rtol=0)


def test_forward_embeds_both_modalities_in_one_call(model, images, texts):
    batches = {
        "image": model.tower("image").encoder.preprocess(images[:3]),
        "text": model.tower("text").encoder.preprocess(texts[:5]),
    }
    output = model(batches)
    assert {name: tuple(value.shape) for name, value in output.items()} == {"image": (3, 16), "text": (5, 16)}
    for value in output.values():
        torch.testing.assert_close(value.norm(dim=-1), torch.ones(len(value)))


# Errors


def test_unknown_kind_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'swish'.*linear.*mlp.*linear\+mlp.*glu.*identity"):
        TokenProjector(4, 4, kind="swish")


def test_identity_cannot_change_the_width():
    with pytest.raises(ValueError, match="in_dim=4 and out_dim=5"):
        ProjectionHead(4, 5, kind="identity")


@pytest.mark.parametrize(
    ("block", "key", "shape"),
    [(TokenProjector(4, 4), "token_embeddings", (1, 2, 7)), (ProjectionHead(4, 4), "sentence_embedding", (1, 7))],
)
def test_wrong_width_names_both_widths(block, key, shape):
    with pytest.raises(ValueError, match=r"width 4 .* gives 7"):
        block({key: torch.zeros(shape)})


def test_missing_cls_vector_says_what_to_do():
    with pytest.raises(ValueError, match=r"cls_token_embeddings.*cls=False"):
        TokenProjector(4, 4, cls=True)({"token_embeddings": torch.zeros(1, 2, 4)})


def test_head_before_pooling_says_what_to_do():
    with pytest.raises(ValueError, match="put a Pooling before it"):
        ProjectionHead(4, 4)({"token_embeddings": torch.zeros(1, 2, 4)})


# Pooling early


@pytest.mark.parametrize("kind", ["linear+mlp", "glu"])
@pytest.mark.parametrize(("mode", "cls"), [("mean", False), ("patch_mean", False), ("cls+patch_mean", True)])
def test_projecting_the_mean_is_the_mean_of_projections(kind, mode, cls):
    """What training computes is what the blocks compute one after another: values and gradients."""
    generator = torch.Generator().manual_seed(0)
    features = {
        "token_embeddings": torch.randn(3, 5, 6, dtype=torch.float64, generator=generator),
        "cls_token_embeddings": torch.randn(3, 6, dtype=torch.float64, generator=generator),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]),
        "special_tokens_mask": torch.tensor([[1, 0, 0, 0, 1], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0]]).bool(),
    }
    projector, pooling = TokenProjector(6, 4, kind=kind, cls=cls, dropout=0.0).double(), Pooling(mode)
    assert projector.can_pool(pooling)
    found = {}
    for early in (False, True):
        projector.zero_grad()
        output = projector.pooled(features, pooling) if early else pooling(projector(features))
        (output["sentence_embedding"] ** 2).sum().backward()
        gradients = [parameter.grad.clone() for parameter in projector.parameters()]
        found[early] = [output["sentence_embedding"].detach(), *gradients]
    for one, other in zip(found[False], found[True]):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(
    ("kind", "mode"), [("mlp", "mean"), ("linear", "mean"), ("linear+mlp", "max"), ("linear+mlp", "cls")]
)
def test_other_projections_and_poolings_go_one_after_another(kind, mode):
    assert not TokenProjector(6, 4, kind=kind, cls=True).can_pool(Pooling(mode))


def test_dropout_draws_the_same_whether_pooled_early_or_not():
    features = {"token_embeddings": torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))}
    projector, pooling = TokenProjector(6, 4, dropout=0.5), Pooling("mean")
    torch.manual_seed(1)
    one = pooling(projector(features))["sentence_embedding"]
    torch.manual_seed(1)
    torch.testing.assert_close(projector.pooled(features, pooling)["sentence_embedding"], one, atol=1e-5, rtol=0)
