"""The rivals of §1–2: what every model must hold, and what each of them is."""

import copy
import itertools
import math
import pickle
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from annotated_transformer import Transformer, TransformerConfig, Translator
from annotated_transformer.attention import padding_mask
from annotated_transformer.baselines import (
    MODELS,
    AdditiveAttention,
    ByteNet,
    ByteNetConfig,
    Convolution,
    ConvS2S,
    ConvS2SConfig,
    GatedConvolution,
    Recurrent,
    RecurrentAttention,
    RecurrentAttentionConfig,
    RecurrentConfig,
    lstm_step,
    model_type,
)
from annotated_transformer.batching import Batch, TokenBatches, pad
from annotated_transformer.checkpoints import Progress, write_checkpoint
from annotated_transformer.decoding import (
    RowPredictor,
    TransformerPredictor,
    attention_maps,
    beam_search,
    greedy_search,
    length_penalty,
    log_probability,
    sample,
    search,
)
from annotated_transformer.interop import to_ctranslate2, to_onnx
from annotated_transformer.tokenizer import Tokenizer
from annotated_transformer.training import (
    Objective,
    TrainingConfig,
    batch_loss,
    run_settings,
    train,
)

PAD, BOS, EOS = 0, 1, 2
SMALL = {
    "recurrent": {"d_model": 8, "d_hidden": 12, "n_layers": 2},
    "recurrent-attention": {"d_model": 8, "d_hidden": 12},
    "convs2s": {"d_model": 8, "d_hidden": 12, "n_layers": 2, "max_length": 90},
    "bytenet": {"d_model": 12, "d_hidden": 8, "n_layers": 3, "n_dilations": 2},
    "transformer": {"d_model": 8, "n_layers": 2, "n_heads": 2, "d_ff": 16},
}
RIVALS = [kind for kind in MODELS if kind != "transformer"]
ATTENTIVE = ["recurrent-attention", "convs2s"]
VIVID = {  # spread of random weights, and a seed: outputs vary, and some of them end
    "recurrent": (0.7, 5),
    "recurrent-attention": (0.7, 3),
    "convs2s": (0.4, 0),
    "bytenet": (0.4, 0),
    "transformer": (0.7, 5),
}


def make(kind, vocab_size=23, seed=0, **changes):
    """A small model as it starts, in training mode."""
    torch.manual_seed(seed)
    config_type = MODELS[kind].config_type
    return MODELS[kind](config_type(vocab_size, **{**SMALL[kind], **changes}))


def vivid(kind, vocab_size=23, seed=0, **changes):
    """One whose outputs depend on all it reads, the row of padding not zero either."""
    std, first = VIVID[kind]
    model = make(kind, vocab_size, first + seed, **changes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=std)
    return model


def sentences(seed=0, lengths=(3, 0, 7, 1, 12, 5, 2)):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 23, (n,), generator=generator).tolist() for n in lengths]


def rectangle(sources, extra_columns=0):
    src = pad([[*ids, EOS] for ids in sources], PAD)
    return F.pad(src, (0, extra_columns), value=PAD)


def batch(seed=0):
    """Sources and targets of several lengths, filled up."""
    src = rectangle(sentences(seed))
    tgt = pad([[BOS, *ids] for ids in sentences(seed + 1, (4, 6, 0, 9, 1, 2, 5))], PAD)
    return src, tgt


@pytest.fixture(params=RIVALS)
def kind(request):
    return request.param


# What every model holds


def test_shapes(kind):
    model = make(kind)
    src, tgt = batch()
    src_mask = padding_mask(src, PAD)
    memory = model.encode(src, src_mask)
    assert len(memory) == len(src)
    assert model.decode(tgt, memory, src_mask).shape == (7, 10, model.config.d_model)
    assert model.hidden(src, tgt).shape == (7, 10, model.config.d_model)
    logits = model(src, tgt)
    assert logits.shape == (7, 10, 23) and logits.dtype == torch.float32


def test_the_gradient_reaches_every_parameter(kind):
    model = make(kind, dropout=0.0)
    src, tgt = batch()
    Objective(model, 0.1)(src, tgt, tgt.roll(-1, 1)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        assert parameter.grad.isfinite().all(), name


def test_the_first_loss_is_that_of_guessing(kind):
    torch.manual_seed(1)
    model = MODELS[kind](MODELS[kind].config_type.tiny(1000)).eval()
    src, tgt, labels = torch.randint(3, 1000, (3, 8, 15))
    loss = Objective(model, 0.0)(src, tgt, labels).item() / labels.numel()
    assert loss == pytest.approx(math.log(1000), rel=0.1)


def test_no_output_sees_a_later_token(kind):
    """Change target token t: nothing before t moves, to the bit, and t does."""
    model = vivid(kind)
    src, tgt = batch()
    tgt = tgt.clamp(min=3)
    with torch.no_grad():
        before = model(src, tgt)
        for t in range(tgt.size(1)):
            changed = tgt.clone()
            changed[:, t] = (tgt[:, t] - 3 + 7) % 20 + 3
            after = model(src, changed)
            assert torch.equal(after[:, :t], before[:, :t])
            assert (after[:, t] != before[:, t]).any(dim=-1).all()


def test_the_gradient_with_respect_to_the_future_is_exactly_zero(kind):
    model = vivid(kind)
    src, tgt = batch()
    embedded = []

    def keep(module, inputs, output):
        output.retain_grad()
        embedded.append(output)

    model.embedding.register_forward_hook(keep)
    logits = model(src, tgt)
    for t in (0, 3, 9):
        model.zero_grad()
        embedded[-1].grad = None
        logits[:, t].square().sum().backward(retain_graph=True)
        gradient = embedded[-1].grad  # the last that was embedded: the target
        assert gradient.shape[:2] == tgt.shape
        assert gradient[:, t + 1 :].eq(0).all() and gradient[:, t].ne(0).any()


def test_more_padding_changes_nothing(kind):
    model = vivid(kind)
    src, tgt = batch()
    with torch.no_grad():
        logits = model(src, tgt)
        wider = model(F.pad(src, (0, 9)), F.pad(tgt, (0, 4)))
    assert torch.allclose(wider[:, : tgt.size(1)], logits, atol=2e-5)


def test_batched_as_alone(kind):
    model = vivid(kind)
    src, tgt = batch()
    with torch.no_grad():
        together = model(src, tgt)
        for row in range(len(src)):
            ids = src[row : row + 1, : (src[row] != PAD).sum()]
            alone = model(ids, tgt[row : row + 1])
            assert torch.allclose(together[row], alone[0], atol=2e-5)
            unmasked = model.decode(tgt[row : row + 1], model.encode(ids, None), None)
            assert torch.allclose(model.logits(unmasked), alone, atol=2e-5)


def test_without_dropout_training_is_evaluation(kind):
    src, tgt = batch()
    for dropout in (0.0, 0.5):
        model = make(kind, dropout=dropout)
        with torch.no_grad():
            same = torch.equal(model.train()(src, tgt), model.eval()(src, tgt))
        assert same == (dropout == 0.0)


def test_dropout_is_on_both_embeddings(kind):
    model, dropped = make(kind, dropout=0.5), []
    model.dropout.register_forward_hook(lambda *call: dropped.append(call[1][0]))
    src, tgt = batch()
    model(src, tgt)
    widths = [x.shape[:2] for x in dropped if x.size(-1) == model.config.d_model]
    assert src.shape in widths and tgt.shape in widths


@pytest.mark.parametrize("steps", [[1] * 10, [3, 1, 4, 2], [10]])
def test_step_by_step_is_all_at_once(kind, steps):
    model = vivid(kind)
    src, tgt = batch()
    src_mask = padding_mask(src, PAD)
    with torch.no_grad():
        memory, cache = model.encode(src, src_mask), model.new_cache()
        found = [
            model.decode(part, memory, src_mask, cache=cache)
            for part in tgt.split(steps, dim=1)
        ]
        assert cache.length == tgt.size(1)
        whole = model.decode(tgt, memory, src_mask)
    assert torch.allclose(torch.cat(found, 1), whole, atol=2e-5)


def test_rows_of_a_cache_are_dropped_and_repeated(kind):
    model = vivid(kind)
    src, tgt = batch()
    src_mask, rows = padding_mask(src, PAD), torch.tensor([5, 2, 2, 0])
    with torch.no_grad():
        memory, cache = model.encode(src, src_mask), model.new_cache()
        model.decode(tgt[:, :4], memory, src_mask, cache=cache)
        cache.select(rows)
        rest = tgt[rows, 4:]
        found = model.decode(rest, memory[rows], src_mask[rows], cache=cache)
        whole = model.decode(tgt, memory, src_mask)
    assert torch.allclose(found, whole[rows, 4:], atol=2e-5)


def test_bfloat16_is_near(kind):
    model = make(kind, dropout=0.0)
    src, tgt = batch()
    objective, data = Objective(model, 0.1), Batch(src, tgt, tgt.roll(-1, 1))
    exact = batch_loss(objective, data)
    rounded = batch_loss(objective, data, bfloat16=True)
    rounded.backward()
    assert rounded.item() == pytest.approx(exact.item(), rel=0.02)
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_weights_in_bfloat16_are_near(kind):
    """As a model is served: cast as a whole, on a batch with padding."""
    model = vivid(kind)
    src, tgt = batch()
    exact = model.hidden(src, tgt)
    rounded = model.bfloat16().hidden(src, tgt)
    assert rounded.dtype == torch.bfloat16
    near = F.cosine_similarity(rounded.float(), exact, dim=-1)  # (B, T)
    assert near.mean() > 0.9


def test_copied_and_pickled_after_use(kind):
    model = vivid(kind)
    src, tgt = batch()
    logits = model(src, tgt)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(src, tgt), logits)


# Search


def test_greedy_is_the_most_probable_token_at_every_step(kind):
    model = vivid(kind)
    sources = sentences()
    found = greedy_search(model, rectangle(sources), extra_length=4)
    for ids, output in zip(sources, found, strict=True):
        limit, prefix = len(ids) + 4, [BOS]
        while len(prefix) <= limit and (len(prefix) == 1 or prefix[-1] != EOS):
            logits = model(torch.tensor([[*ids, EOS]]), torch.tensor([prefix]))[0, -1]
            logits[[PAD, BOS]] = -torch.inf
            prefix.append(int(logits.argmax()))
        assert output == [token for token in prefix[1:] if token != EOS]
    assert len({tuple(output) for output in found}) > 3  # it does read the source


def test_a_beam_of_one_is_greedy(kind):
    model = vivid(kind)
    src = rectangle(sentences())
    (found,) = zip(*beam_search(model, src, 1, extra_length=6), strict=True)
    greedy = greedy_search(model, src, extra_length=6)
    assert [one.tokens for one in found] == greedy


def test_a_beam_wide_enough_finds_what_trying_everything_finds(kind):
    """Four tokens may be said, three at most: 4 + 9 + 27 … outputs, each scored."""
    for seed in range(3):
        model = vivid(kind, vocab_size=6, seed=seed)
        src = rectangle([[3], [5, 4]])
        best = beam_search(model, src, 64, extra_length=2, n_best=3)
        for source, found in zip(([3], [5, 4]), best, strict=True):
            limit = len(source) + 2
            outputs = [
                list(words)
                for n in range(limit)  # with eos they may have `limit` tokens
                for words in itertools.product((3, 4, 5), repeat=n)
            ]
            one = rectangle([source]).expand(len(outputs), -1)
            scores = {}
            for output, log_p in zip(
                outputs, log_probability_of_text(model, one, outputs), strict=True
            ):
                scores[tuple(output)] = log_p / length_penalty(len(output) + 1, 0.6)
            expected = sorted(scores, key=scores.get, reverse=True)[:3]
            assert [tuple(h.tokens) for h in found] == expected
            for hypothesis in found:
                expected_score = scores[tuple(hypothesis.tokens)]
                assert hypothesis.score == pytest.approx(expected_score, abs=1e-4)


def log_probability_of_text(model, src, outputs):
    """log p in float64, padding and bos still in the softmax, as in a search."""
    return log_probability(copy.deepcopy(model).double(), src, outputs)


def test_a_search_does_not_depend_on_its_neighbours(kind):
    model = vivid(kind)
    sources = sentences()
    together = beam_search(model, rectangle(sources, 3), 3, extra_length=5, n_best=3)
    for ids, found in zip(sources, together, strict=True):
        (alone,) = beam_search(model, rectangle([ids]), 3, extra_length=5, n_best=3)
        assert [one.tokens for one in found] == [one.tokens for one in alone]


def test_what_a_hypothesis_scores_is_what_the_model_says_of_it(kind):
    model = vivid(kind)
    src = rectangle(sentences())
    found = beam_search(model, src, 4, extra_length=9)
    for row, (best,) in zip(src, found, strict=True):
        said = torch.tensor([*best.tokens, EOS][: len(best.tokens) + best.ended])
        with torch.no_grad():
            logits = model(row[None], torch.tensor([[BOS, *best.tokens]]))[0]
        log_probs = logits.log_softmax(-1)[torch.arange(len(said)), said]
        assert best.log_prob == pytest.approx(log_probs.sum().item(), abs=1e-3)


def test_the_row_predictor_is_the_other_one_for_a_transformer():
    model = vivid("transformer")
    src = rectangle(sentences())
    limit = (src != PAD).sum(1) + 6
    answers = []
    with torch.inference_mode():
        for predictor in (TransformerPredictor(model, src), RowPredictor(model, src)):
            answers.append(search(predictor, limit, EOS, 4, n_best=4))
    assert len(answers[0]) == 7
    for first, second in zip(*answers, strict=True):
        assert [one.tokens for one in first] == [one.tokens for one in second]
        scores = [[one.log_prob for one in several] for several in (first, second)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_all_kinds_translate_together_and_by_lot():
    models = [vivid(kind) for kind in MODELS]
    src = rectangle(sentences())
    found = [best for (best,) in beam_search(models, src, 3, extra_length=5)]
    ended = [i for i, one in enumerate(found) if one.ended]
    said = log_probability(models, src[ended], [found[i].tokens for i in ended])
    assert said == pytest.approx([found[i].log_prob for i in ended], abs=1e-3)
    drawn = sample(models[1], src, 3, extra_length=5, prefixes=[[7]] * 7)
    assert all(one.tokens[0] == 7 for several in drawn for one in several)


# Training, and what is left of it on the disk


def copying_task(n=60):
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for _ in range(n):
        ids = torch.randint(3, 11, (int(torch.randint(1, 6, (), generator=generator)),))
        pairs.append((ids.tolist(), ids.tolist()))
    return pairs


def test_the_training_loop_trains_it_and_goes_on(kind, tmp_path):
    pairs = copying_task()
    batches = TokenBatches(pairs, 80, PAD, BOS, EOS, 0)
    validation = [batches.make(group) for group in batches.groups(0)]
    config = TrainingConfig(
        80, epochs=None, max_steps=24, warmup=8, rate=0.3, validate_every=12
    )

    def run(model, folder, stop=lambda: False):
        return list(train(model, batches, validation, config, None, folder, stop=stop))

    model = make(kind, vocab_size=11)
    records = run(model, tmp_path / "whole")
    assert len(records) == 2
    assert records[1]["train_loss"] < records[0]["train_loss"]

    broken, counted = make(kind, vocab_size=11), itertools.count(1)
    run(broken, tmp_path / "broken", lambda: next(counted) == 7)
    resumed = make(kind, vocab_size=11, seed=9)
    run(resumed, tmp_path / "broken")
    for one, other in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_rate_multiplies_the_schedule(tmp_path):
    batches = TokenBatches(copying_task(), 80, PAD, BOS, EOS, 0)
    validation = [batches.make(batches.groups(0)[0])]
    rates = []
    for rate in (1.0, 0.25):
        config = TrainingConfig(80, epochs=None, max_steps=2, rate=rate)
        folder = tmp_path / str(rate)
        list(train(make("recurrent", 11), batches, validation, config, None, folder))
        steps = (folder / "steps.jsonl").read_text().splitlines()
        rates.append([re.search(r'learning_rate": ([\d.e-]+)', s)[1] for s in steps])
    whole, quarter = [list(map(float, each)) for each in rates]
    assert quarter == pytest.approx([rate / 4 for rate in whole])
    shape = RecurrentConfig(11)
    for rate in (1.0, 0.25):
        assert run_settings(shape, TrainingConfig(rate=rate))["rate"] == rate
    with pytest.raises(ValueError, match="rate is 0: it must be positive"):
        TrainingConfig(rate=0)


LINES = ["A dog runs.", "Two men sit on a bench.", "Nobody is here.", "Ein Hund!"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(LINES, 290)


def translator(kind, tokenizer):
    return Translator(vivid(kind, tokenizer.vocab_size, max_length=90), tokenizer)


def test_saved_and_loaded(kind, tokenizer, tmp_path):
    saved = translator(kind, tokenizer)
    saved.save_pretrained(tmp_path)
    loaded = Translator.from_pretrained(tmp_path)
    assert type(loaded.model) is type(saved.model)
    assert loaded.model.config == saved.model.config
    for name, value in saved.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value), name
    assert loaded.translate(LINES) == saved.translate(LINES)
    assert loaded.translate(LINES, beam_size=3) == saved.translate(LINES, beam_size=3)


def test_a_checkpoint_is_a_model(kind, tokenizer, tmp_path):
    saved = translator(kind, tokenizer)
    tokenizer.save(tmp_path / "tokenizer.model")
    state = saved.model.state_dict().items()
    tensors = {f"model.{name}": value for name, value in state}
    settings = run_settings(saved.model.config, TrainingConfig(rate=2.0))
    path = tmp_path / "step-00000001.safetensors"
    write_checkpoint(path, tensors, Progress(step=1), settings)
    loaded = Translator.from_pretrained(path)
    assert loaded.model.config == saved.model.config
    assert loaded.translate(LINES) == saved.translate(LINES)


def test_a_transformer_is_saved_as_before(tokenizer, tmp_path):
    saved = translator("transformer", tokenizer)
    saved.save_pretrained(tmp_path)
    assert "kind" not in (tmp_path / "config.json").read_text()
    assert "kind" not in run_settings(saved.model.config, TrainingConfig())
    assert type(Translator.from_pretrained(tmp_path).model) is Transformer


def test_an_unknown_kind_is_named(tokenizer, tmp_path):
    translator("recurrent", tokenizer).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"recurrent"', '"elman"'))
    expected = "config.json: kind is 'elman': it must be one of transformer, recurrent"
    with pytest.raises(ValueError, match=expected):
        Translator.from_pretrained(tmp_path)
    assert model_type({}) is Transformer


def test_other_runtimes_refuse_it(tokenizer, tmp_path):
    saved = translator("bytenet", tokenizer)
    for convert in (to_ctranslate2, to_onnx):
        with pytest.raises(ValueError, match="a bytenet model: .* a transformer only"):
            convert(saved, tmp_path)


# Where a model looks


@pytest.mark.parametrize("kind", ATTENTIVE)
def test_weights_over_the_source(kind):
    model = vivid(kind)
    sources, outputs = sentences(), sentences(1)
    layers = {"recurrent-attention": 1, "convs2s": 2}[kind]
    found = attention_maps(model, rectangle(sources, 2), outputs)
    for ids, output, one in zip(sources, outputs, found, strict=True):
        n_rows, n_columns = len(output) + 1, len(ids) + 1
        assert one.cross.shape == (layers, 1, n_rows, n_columns)
        ones = torch.ones(layers, 1, n_rows)
        assert torch.allclose(one.cross.sum(-1), ones, atol=1e-5)
        assert one.encoder.shape == (0, 0, n_columns, n_columns)
        assert one.decoder.shape == (0, 0, n_rows, n_rows)
        (alone,) = attention_maps(model, rectangle([ids]), [output])
        assert torch.allclose(one.cross, alone.cross, atol=1e-5)


@pytest.mark.parametrize("kind", ["recurrent", "bytenet"])
def test_a_model_without_attention_says_so(kind):
    with pytest.raises(ValueError, match=f"a {kind} model has no attention"):
        attention_maps(make(kind), rectangle([[4]]), [[5]])


# The recurrent ones


def test_one_step_is_that_of_torch():
    torch.manual_seed(0)
    cell = nn.LSTMCell(5, 7)
    x, h, c = torch.randn(3, 5), torch.randn(3, 7), torch.randn(3, 7)
    gates = F.linear(x, cell.weight_ih, cell.bias_ih)
    gates = gates + F.linear(h, cell.weight_hh, cell.bias_hh)
    for ours, theirs in zip(lstm_step(gates, c), cell(x, (h, c)), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def steps(lstm, layer, x, h, c, suffix=""):
    """The outputs of one layer of an nn.LSTM, by `lstm_step`; x: (T, D)."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    w_x, w_h, b_x, b_h = (getattr(lstm, f"{n}_l{layer}{suffix}") for n in names)
    outputs = []
    for x_t in x:
        h, c = lstm_step(w_x @ x_t + b_x + w_h @ h + b_h, c)
        outputs.append(h)
    return torch.stack(outputs), h, c


def test_the_recurrent_model_is_two_chains_of_steps():
    """Read from its end: two layers; then the target from that state; all by hand."""
    model = vivid("recurrent")
    ids, tgt = [5, 9, 14, EOS], [BOS, 7, 3]
    embed = lambda tokens: model.embedding(torch.tensor(tokens))  # noqa: E731
    with torch.no_grad():
        x, ends = embed(ids[::-1]), []
        for layer in range(2):
            x, h, c = steps(model.encoder, layer, x, torch.zeros(12), torch.zeros(12))
            ends.append((h, c))
        x = embed(tgt)
        for layer, end in enumerate(ends):
            x, _, _ = steps(model.decoder, layer, x, *end)
        expected = model.logits(model.output(x))
        logits = model(torch.tensor([ids]), torch.tensor([tgt]))[0]
    assert torch.allclose(logits, expected, atol=1e-4)


def test_at_the_start_a_cell_keeps_three_quarters():
    """The forget gates of every LSTM add up to a bias of 1, and no gate else does."""
    one, other = make("recurrent"), make("recurrent-attention")
    bound = 2 / one.config.d_hidden**0.5  # two biases as torch draws them
    for lstm in (one.encoder, one.decoder, other.encoder):
        for name, bias in lstm.named_parameters():
            if name.startswith("bias_ih"):
                total = bias + getattr(lstm, name.replace("ih", "hh"))
                i, f, g, o = total.detach().chunk(4)
                assert ((f - 1).abs() < bound).all()
                assert all(x.abs().max() < bound < 1 for x in (i, g, o))
    assert (other.w_y.bias.detach().chunk(4)[1] == 1).all()
    product = other.w_s.weight.mT @ other.w_s.weight  # (H, H)
    torch.testing.assert_close(product.detach(), torch.eye(len(product)))


def test_its_memory_is_one_vector_whatever_the_length():
    model = vivid("recurrent")
    src = rectangle(sentences())
    memory = model.encode(src, padding_mask(src, PAD))
    assert memory.shape == (7, 1, 2 * 2 * 12)
    assert len(memory.flatten(1).unique(dim=0)) == 7


def test_recurrence_with_attention_by_hand():
    """Bahdanau's equations with loops: e, α, c, s for each target token."""
    model = vivid("recurrent-attention")
    ids, tgt = [5, 9, 14, EOS], [BOS, 7, 3]
    d = model.config.d_hidden
    look = model.attention
    with torch.no_grad():
        x, zero = model.embedding(torch.tensor(ids)), torch.zeros(d)
        there, _, _ = steps(model.encoder, 0, x, zero, zero)
        back, _, _ = steps(model.encoder, 0, x.flip(0), zero, zero, "_reverse")
        h = torch.cat([there, back.flip(0)], dim=-1)  # (S, 2 H)
        s, cell = model.start(h[0, d:]).tanh(), zero
        for token in tgt:
            sums = [look.w.weight @ s + look.u.weight @ h_j + look.u.bias for h_j in h]
            e = torch.stack([(look.v.weight @ each.tanh())[0] for each in sums])
            alpha = e.exp() / e.exp().sum()
            context = sum(a * h_j for a, h_j in zip(alpha, h, strict=True))
            y = model.embedding(torch.tensor(token))
            gates = model.w_y(y) + model.w_c(context) + model.w_s(s)
            s, cell = lstm_step(gates, cell)
            hidden = model.output(torch.cat([y, s, context])).tanh()
        logits = model(torch.tensor([ids]), torch.tensor([tgt]))[0, -1]
        weights = model.source_weights(torch.tensor([ids]), torch.tensor([tgt]))
    assert torch.allclose(logits, model.logits(hidden), atol=1e-4)
    assert torch.allclose(weights[0][0, 0, -1], alpha, atol=1e-5)


def test_a_state_that_may_look_nowhere_gets_zeros():
    attention = AdditiveAttention(4, 6, 5)
    mask = torch.tensor([[False, False, False], [True, False, True]])
    keys, query = torch.randn(2, 3, 5), torch.randn(2, 4, requires_grad=True)
    weights = attention(query, keys, mask)
    assert weights[0].eq(0).all() and weights[1, 1] == 0
    assert weights[1].sum().item() == pytest.approx(1)
    weights.square().sum().backward()
    assert query.grad.isfinite().all()


# The convolutional ones


@pytest.mark.parametrize("dilation", [1, 2, 4])
def test_a_convolution_is_that_of_torch(dilation):
    torch.manual_seed(0)
    ours = Convolution(5, 7, 3, dilation)
    theirs = nn.Conv1d(5, 7, 3, dilation=dilation, padding=dilation)
    weight = theirs.weight.data.permute(0, 2, 1).reshape(7, 15)  # (out, k · in)
    ours.linear.load_state_dict({"weight": weight, "bias": theirs.bias.data})
    x = torch.randn(2, 11, 5)
    expected = theirs(x.transpose(1, 2)).transpose(1, 2)
    assert torch.allclose(ours.centred(x), expected, atol=1e-5)
    span = 2 * dilation
    causal, past = ours.causal(x, torch.zeros(2, span, 5))
    shifted = F.pad(expected, (0, 0, dilation, 0))[:, : x.size(1)]
    inner = slice(dilation, None)  # where the padding on the right is not seen
    assert torch.allclose(causal[:, inner], shifted[:, inner], atol=1e-5)
    assert torch.equal(past, x[:, -span:])


def test_a_convolution_of_one_position_has_no_past():
    torch.manual_seed(0)
    one = Convolution(5, 7, 1)
    x = torch.randn(2, 4, 5)
    y, past = one.causal(x, torch.zeros(2, 0, 5))
    assert past.shape == (2, 0, 5)
    assert torch.equal(y, one.linear(x))


def test_a_gated_convolution_is_a_times_sigmoid_of_b():
    torch.manual_seed(0)
    layer = GatedConvolution(4, 3, 0.0)
    x = torch.randn(1, 6, 4)
    a, b = layer.convolution.centred(x).chunk(2, dim=-1)
    assert torch.allclose(layer.centred(x, None), a * b.sigmoid(), atol=1e-6)


def test_gated_convolutions_keep_the_variance():
    """Gehring et al., appendix A.2: of small inputs, whose gates are near a half."""
    torch.manual_seed(0)
    layer = GatedConvolution(256, 3, 0.0)
    y = layer.centred(0.1 * torch.randn(8, 60, 256), None)
    assert y[:, 1:-1].square().mean().item() == pytest.approx(0.01, rel=0.05)


def reach(model, n=40):
    """Target positions that the last output of a rival depends on."""
    src, tgt = torch.full((1, n), 5), torch.full((1, n), 7)
    with torch.no_grad():
        before = model(src, tgt)[0, -1]
        changed = tgt.repeat(n, 1)
        changed[torch.arange(n), torch.arange(n)] = 9
        after = model(src.expand(n, -1), changed)[:, -1]
    moved = (after - before).abs().amax(dim=-1) > 0
    return n - int(moved.nonzero()[0])


def test_what_a_stack_of_convolutions_reaches():
    """n layers of width k see n (k - 1) + 1 tokens; dilated, Σ 2^i (k - 1) + 1."""
    assert reach(vivid("convs2s", n_layers=3)) == 3 * 2 + 1
    assert reach(vivid("convs2s", n_layers=2, kernel_size=5)) == 2 * 4 + 1
    assert reach(vivid("bytenet", n_layers=3, n_dilations=5)) == (1 + 2 + 4) * 2 + 1
    assert reach(vivid("bytenet", n_layers=3, n_dilations=2)) == (1 + 2 + 1) * 2 + 1


def test_convs2s_knows_positions():
    model = vivid("convs2s")
    src = torch.tensor([[5, 6, 7, 8, 9, EOS]])
    swapped = src[:, [4, 1, 2, 3, 0, 5]]
    tgt = torch.tensor([[BOS]])
    with torch.no_grad():
        model.positions.table.zero_()
        for layer in model.encoder:  # nothing but attention is left to tell
            layer.convolution.linear.weight.zero_()
        assert torch.allclose(model(src, tgt), model(swapped, tgt), atol=1e-5)
        model.positions.table.normal_()
        assert not torch.allclose(model(src, tgt), model(swapped, tgt), atol=1e-2)


def test_bytenet_has_a_column_for_each_target_position():
    model = vivid("bytenet")
    src = rectangle([[4] * 9, [5] * 4])  # with eos 10 and 5: 12 and 6 columns
    memory = model.encode(src, padding_mask(src, PAD))
    assert memory.shape == (2, 12, 12)
    assert memory[1, 6:].eq(0).all() and memory[1, 5].ne(0).any()
    # Past the last column it still says something, of the target alone.
    with torch.no_grad():
        tgt = torch.randint(3, 23, (1, 40))
        a, b = (model(rectangle([ids]), tgt)[0, -1] for ids in ([4] * 3, [9, 8, 7]))
    assert torch.equal(a, b)


# Configurations


CONFIGS = {
    "recurrent": RecurrentConfig,
    "recurrent-attention": RecurrentAttentionConfig,
    "convs2s": ConvS2SConfig,
    "bytenet": ByteNetConfig,
}


def test_each_kind_has_its_model():
    types = [Transformer, Recurrent, RecurrentAttention, ConvS2S, ByteNet]
    assert list(MODELS.values()) == types
    assert {kind: MODELS[kind].config_type for kind in RIVALS} == CONFIGS


def test_a_configuration_comes_back(kind):
    config = CONFIGS[kind](50, dropout=0.3, d_hidden=7)
    values = config.to_dict()
    assert values["kind"] == kind
    assert CONFIGS[kind].from_dict(values) == config
    assert model_type(values).config_type is CONFIGS[kind]
    with pytest.raises(ValueError, match="kind is 'gru': it must be"):
        CONFIGS[kind].from_dict({**values, "kind": "gru"})
    with pytest.raises(ValueError, match="unknown configuration field: n_heads"):
        CONFIGS[kind].from_dict({**values, "n_heads": 4})
    with pytest.raises(ValueError, match="missing configuration field: vocab_size"):
        CONFIGS[kind].from_dict({"d_model": 4})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 0}, "d_model is 0: it must be a positive integer"),
        ({"d_hidden": 1.5}, "d_hidden is 1.5: it must be a positive integer"),
        ({"vocab_size": True}, "vocab_size is True: it must be a positive integer"),
        ({"max_length": "9"}, "max_length is '9': it must be a positive integer"),
        ({"dropout": 1.0}, r"dropout is 1.0: it must be a probability in \[0, 1\)"),
        ({"dropout": "no"}, "dropout is 'no': it must be a probability"),
        ({"eos_id": 50}, r"eos_id is 50: it must be an integer in \[0, 50\)"),
        ({"pad_id": 1}, r"pad_id is 1: it must be neither bos_id \(1\)"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(kind, changes, message):
    with pytest.raises(ValueError, match=message):
        CONFIGS[kind](**{"vocab_size": 50, **changes})


@pytest.mark.parametrize("kind", ["convs2s", "bytenet"])
def test_a_kernel_has_a_middle(kind):
    for size in (1, 4):
        expected = f"kernel_size is {size}: it must be odd and at least 3"
        with pytest.raises(ValueError, match=expected):
            CONFIGS[kind](50, kernel_size=size)
    with pytest.raises(ValueError, match="n_layers is 0: it must be a positive"):
        CONFIGS[kind](50, n_layers=0)
    with pytest.raises(ValueError, match="stretch is 0.5: it must be a number of at"):
        ByteNetConfig(50, stretch=0.5)


def parameters(kind, size, vocab_size):
    with torch.device("meta"):
        model = MODELS[kind](getattr(MODELS[kind].config_type, size)(vocab_size))
    return sum(p.numel() for p in model.parameters())


def test_the_tiny_ones_are_of_one_size(kind):
    with torch.device("meta"):
        transformer = Transformer(TransformerConfig.tiny(4000))
    n = sum(p.numel() for p in transformer.parameters())
    assert parameters(kind, "tiny", 4000) == pytest.approx(n, rel=0.02)


def test_the_base_ones_are_as_published(kind):
    """Widths and depths of the papers; V is 30,000, one matrix for both ends."""
    expected = {
        # 30,000 × 1000; 4 layers of 8 H² + 8 H, twice; H → D
        "recurrent": 30_000 * 1000 + 2 * 4 * (8_000_000 + 8000) + 1_001_000,
        "recurrent-attention": 30_000 * 620
        + 2 * 4 * (620 + 1000 + 2) * 1000  # the encoder, both ways
        + 1_001_000  # the first state
        + (1000 + 2000 + 1 + 1) * 1000  # W, U and its bias, v
        + 4000 * (620 + 1 + 2000 + 1000)  # the cell
        + (620 + 3000 + 1) * 620,  # the output
        "convs2s": 30_000 * 512
        + 2048 * 512  # positions
        + 4 * (512 * 512 + 512)
        + 40 * (3 * 512 + 1) * 1024
        + 20 * 2 * (512 * 512 + 512),
        "bytenet": 30_000 * 1600
        + 60 * (2 * 1600 * 800 + 1600 + 800 + (3 * 800 + 1) * 800)
        + 60 * 2 * (1600 + 800 + 800)
        + 2 * 1600
        + 1600 * 1601,
    }
    assert parameters(kind, "base", 30_000) == expected[kind]
