"""Greedy and beam search: batched, cached and stopped early, still what they define."""

import copy
import functools
import math
import pickle
import random
from collections import Counter

import pytest
import torch

from annotated_transformer.attention import (
    fused_attention,
    scaled_dot_product_attention,
)
from annotated_transformer.batching import pad
from annotated_transformer.decoding import (
    Constrained,
    attention_maps,
    attention_places,
    beam_search,
    draw,
    greedy_search,
    length_penalty,
    log_probability,
    replaced_attention,
    sample,
    search,
)
from annotated_transformer.model import Transformer, TransformerConfig

PAD, BOS, EOS = 0, 1, 2


class Toy(Transformer):
    """A random model whose logits get `bias`: a dictionary from token to number."""

    bias: dict = {}

    def logits(self, hidden):
        logits = super().logits(hidden)
        for token, value in self.bias.items():
            logits[..., token] += value
        return logits


def toy(seed=0, bias=None, **changes):
    torch.manual_seed(seed)
    sizes = {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 32, "max_length": 90}
    model = Toy(TransformerConfig(23, **{**sizes, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.7)  # far from initialisation: outputs that vary
    model.bias = {} if bias is None else bias
    return model


def sentences(seed=0, lengths=(3, 0, 7, 1, 12, 5, 2)):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 23, (n,), generator=generator).tolist() for n in lengths]


def rectangle(sources, extra_columns=0):
    src = pad([[*ids, EOS] for ids in sources], PAD)
    return torch.nn.functional.pad(src, (0, extra_columns), value=PAD)


@torch.no_grad()
def step_by_step(model, ids, extra_length=50):
    """The definition: no batch, no cache, everything decoded again at every step."""
    src, prefix = torch.tensor([[*ids, EOS]]), [BOS]
    while len(prefix) - 1 < len(ids) + extra_length:
        logits = model(src, torch.tensor([prefix]))[0, -1].tolist()
        allowed = [token for token in range(len(logits)) if token not in (PAD, BOS)]
        prefix.append(max(allowed, key=logits.__getitem__))
        if prefix[-1] == EOS:
            return prefix[1:-1]
    return prefix[1:]


VARIANTS = [
    {},
    {"norm": "pre"},
    {"positions": "learned"},
    {"d_k": 5, "d_v": 3},
    {"n_layers": 1},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_equals_step_by_step_argmax(seed, changes):
    model = toy(seed, {EOS: 3.0}, **changes)
    sources = sentences(seed)
    expected = [step_by_step(model, ids) for ids in sources]
    assert greedy_search(model, rectangle(sources)) == expected


def test_the_toys_end_at_different_lengths():
    """Otherwise the tests above would not see a sentence leave the batch."""
    lengths = set()
    for seed in range(3):
        outputs = greedy_search(toy(seed, {EOS: 3.0}), rectangle(sentences(seed)))
        lengths |= set(map(len, outputs))
    assert len(lengths) > 5


@pytest.mark.parametrize("extra_columns", [0, 1, 9])
def test_batched_equals_one_by_one_whatever_the_padding(extra_columns):
    model, sources = toy(1, {EOS: 3.0}), sentences(1)
    alone = [greedy_search(model, rectangle([ids]))[0] for ids in sources]
    assert greedy_search(model, rectangle(sources, extra_columns)) == alone
    assert greedy_search(model, rectangle(sources[::-1], extra_columns)) == alone[::-1]


@pytest.mark.parametrize("extra_length", [1, 8, 50])
def test_a_model_that_never_ends_stops_at_each_sentences_own_limit(extra_length):
    sources = sentences()
    outputs = greedy_search(toy(0, {EOS: -1e9}), rectangle(sources), extra_length)
    assert list(map(len, outputs)) == [len(ids) + extra_length for ids in sources]


def test_a_model_that_ends_at_once_says_nothing():
    assert greedy_search(toy(0, {EOS: 1e9}), rectangle(sentences())) == [[]] * 7


def test_an_empty_sentence_and_an_empty_batch():
    model = toy(2)
    assert greedy_search(model, rectangle([[]])) == [step_by_step(model, [])]
    assert greedy_search(model, torch.zeros(0, 4, dtype=torch.int64)) == []
    assert greedy_search(model, torch.zeros(0, 0, dtype=torch.int64)) == []
    assert log_probability(model, torch.zeros(0, 4, dtype=torch.int64), []) == []


def test_padding_and_bos_are_never_chosen():
    model = toy(0, {PAD: 1e6, BOS: 1e6})
    sources = sentences()
    outputs = greedy_search(model, rectangle(sources))
    assert not {PAD, BOS, EOS} & {token for out in outputs for token in out}
    assert outputs == [step_by_step(model, ids) for ids in sources]


def test_no_position_is_decoded_twice_and_ended_sentences_leave():
    model, sources = toy(1, {EOS: 3.0}), sentences(1)
    decoded, encoded = [], []
    for stack, counts in ((model.decoder, decoded), (model.encoder, encoded)):
        stack.layers[0].register_forward_pre_hook(
            lambda layer, args, counts=counts: counts.append(args[0].shape[:2].numel())
        )
    outputs = greedy_search(model, rectangle(sources))
    limits = [len(ids) + 50 for ids in sources]
    steps = [min(len(o) + 1, n) for o, n in zip(outputs, limits, strict=True)]
    assert sum(decoded) == sum(steps)
    assert len(encoded) == 1


def test_dropout_is_off_and_the_mode_comes_back():
    model = toy(1, {EOS: 3.0}, dropout=0.5)
    expected = greedy_search(model, rectangle(sentences()))
    model.train()
    assert greedy_search(model, rectangle(sentences())) == expected
    assert model.training and model.decoder.layers[0].training


def test_the_limit_has_to_fit_the_positions():
    model = toy(0, {EOS: -1e9}, max_length=60)
    assert len(greedy_search(model, rectangle([[5] * 10]))[0]) == 60
    with pytest.raises(ValueError, match="11 input tokens and 50 more .* 60"):
        greedy_search(model, rectangle([[5], [5] * 11]))
    with pytest.raises(ValueError, match="extra_length is 0"):
        greedy_search(model, rectangle([[5]]), 0)


def test_bfloat16():
    model = toy(0, {EOS: 3.0}).bfloat16()
    assert len(greedy_search(model, rectangle(sentences()))) == 7


# Beam search on tables: every answer can be found by looking at all of them


class Tables:
    """A predictor of B sentences, each with a table: prefix → log p of each token."""

    def __init__(self, tables):
        self.tables = tables

    def start(self):
        return self.look_up([[()] for _ in self.tables])

    def extend(self, parents, tokens):
        rows = zip(self.prefixes, parents.tolist(), tokens.tolist(), strict=True)
        return self.look_up(
            [
                [(*prefixes[k], token) for k, token in zip(ks, ts, strict=True)]
                for prefixes, ks, ts in rows
            ]
        )

    def keep(self, rows):
        self.tables = [self.tables[row] for row in rows.tolist()]
        self.prefixes = [self.prefixes[row] for row in rows.tolist()]

    def look_up(self, prefixes):
        self.prefixes = prefixes
        rows = zip(self.tables, prefixes, strict=True)
        return torch.tensor([[list(table(p)) for p in some] for table, some in rows])


END = 0  # eos in a table


def random_table(seed, n_tokens=4, sharpness=1.5, impossible=0.0):
    """Log-probabilities of a prefix, drawn when it is asked for and then the same."""

    @functools.cache
    def table(prefix):
        rng = random.Random(f"{seed} {prefix}")
        logits = [rng.gauss(0, sharpness) for _ in range(n_tokens)]
        for token in range(n_tokens - 1):  # the last stays possible
            if rng.random() < impossible:
                logits[token] = -math.inf
        total = math.log(sum(map(math.exp, logits)))
        return [logit - total for logit in logits]

    return table


def penalised(log_p, length, alpha):
    return log_p / ((5 + length) / 6) ** alpha


def every_output(table, limit, prefix=(), log_p=0.0):
    """(tokens, log p, ended) of all there is: what ends, and what is cut."""
    for token, added in enumerate(table(prefix)):
        if added == -math.inf:
            continue
        if token == END:
            yield prefix, log_p + added, True
        elif len(prefix) + 1 == limit:
            yield (*prefix, token), log_p + added, False
        else:
            yield from every_output(table, limit, (*prefix, token), log_p + added)


def by_exhaustion(table, limit, alpha, n_best):
    outputs = [
        (ended, penalised(log_p, len(tokens) + ended, alpha), tokens)
        for tokens, log_p, ended in every_output(table, limit)
    ]
    return sorted(outputs, reverse=True)[:n_best]


def plain_beam(table, limit, alpha, beam_size, n_best):
    """The definition, in lists: it never stops before the limit."""
    beam, ended = [(0.0, ())], []
    for step in range(1, limit + 1):
        grown = [
            (log_p + added, (*prefix, token))
            for log_p, prefix in beam
            for token, added in enumerate(table(prefix))
            if added > -math.inf
        ]
        grown = sorted(grown, reverse=True)[: beam_size - len(ended)]
        ended += [
            (True, penalised(log_p, step, alpha), prefix[:-1])
            for log_p, prefix in grown
            if prefix[-1] == END
        ]
        beam = [(log_p, prefix) for log_p, prefix in grown if prefix[-1] != END]
    cut = [(False, penalised(log_p, limit, alpha), prefix) for log_p, prefix in beam]
    return sorted(ended + cut, reverse=True)[:n_best]


def as_tuples(found):
    return [(h.ended, h.score, tuple(h.tokens)) for h in found]


def assert_equal(found, expected):
    found = as_tuples(found)
    assert [(e, t) for e, _, t in found] == [(e, t) for e, _, t in expected]
    assert [s for _, s, _ in found] == pytest.approx([s for _, s, _ in expected], 1e-4)


ALPHAS = 0.0, 0.6, 1.0, 2.0
CASES = 300  # random tables for each α, half of them with impossible tokens


@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_full_beam_finds_the_exact_best(alpha):
    """1,200 tables in all: the best of all outputs, and the five best in order."""
    limit = 4
    tables = [random_table(seed, impossible=0.3 * (seed % 2)) for seed in range(CASES)]
    limits = torch.full((CASES,), limit)
    for n_best in (1, 5):
        found = search(Tables(tables), limits, END, 4**limit, alpha, n_best)
        for some, table in zip(found, tables, strict=True):
            assert_equal(some, by_exhaustion(table, limit, alpha, n_best))


@pytest.mark.parametrize("beam_size", [1, 2, 3, 5])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_stopping_early_never_changes_what_is_found(alpha, beam_size):
    tables = [random_table(seed, sharpness=2.0) for seed in range(150)]
    limits = torch.tensor([4 + seed % 5 for seed in range(150)])
    for n_best in {1, beam_size}:
        found = search(Tables(tables), limits, END, beam_size, alpha, n_best)
        for some, table, limit in zip(found, tables, limits.tolist(), strict=True):
            expected = plain_beam(table, limit, alpha, beam_size, n_best)
            assert_equal(some, expected)


def test_it_does_stop_early():
    """Otherwise the test above would prove nothing."""
    certain = [[math.log(0.98)] + [math.log(0.01)] * 2] * 2
    asked = []

    def table(prefix):
        asked.append(prefix)
        return certain[0]

    search(Tables([table]), torch.tensor([50]), END, beam_size=3, alpha=0.6)
    assert max(map(len, asked)) < 5


def path(*steps):
    """A table from (prefix, {token: p})."""
    return lambda prefix: [
        math.log(p)
        if (p := dict(steps).get(prefix, {END: 1.0}).get(token, 0))
        else -math.inf
        for token in range(4)
    ]


def test_what_ends_first_can_be_overtaken_and_is():
    """1 ends at once with 0.52; 2 3 3 3 has 0.48, and the penalty prefers it."""
    table = path(
        ((), {1: 0.52, 2: 0.48}),
        ((2,), {3: 1.0}),
        ((2, 3), {3: 1.0}),
        ((2, 3, 3), {3: 1.0}),
    )
    (found,) = search(Tables([table]), torch.tensor([8]), END, 2, alpha=0.6, n_best=2)
    assert [h.tokens for h in found] == [[2, 3, 3, 3], [1]]
    (found,) = search(Tables([table]), torch.tensor([8]), END, 2, alpha=0.0, n_best=2)
    assert [h.tokens for h in found] == [[1], [2, 3, 3, 3]]
    (found,) = search(Tables([table]), torch.tensor([8]), END, 2, alpha=0.6)
    assert found[0].tokens == [2, 3, 3, 3]


@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_beam_of_one_is_greedy_on_tables(alpha):
    for seed in range(200):
        table, prefix = random_table(seed), ()
        while len(prefix) < 6:
            answer = table(prefix)
            token = max(range(4), key=answer.__getitem__)
            if token == END:
                break
            prefix = (*prefix, token)
        ((found,),) = search(Tables([table]), torch.tensor([6]), END, 1, alpha)
        assert (tuple(found.tokens), found.ended) == (prefix, len(prefix) < 6)


@pytest.mark.parametrize(
    ("length", "alpha", "expected"),
    [
        (1, 0.6, 1.0),  # eos alone
        (2, 0.6, 1.0969027),
        (7, 0.6, 1.5157166),
        (13, 0.6, 1.9331820),
        (25, 0.6, 2.6265278),
        (7, 1.0, 2.0),
        (13, 1.0, 3.0),
        (13, 2.0, 9.0),
        (40, 0.0, 1.0),
    ],
)
def test_table_of_penalties(length, alpha, expected):
    assert length_penalty(length, alpha) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("tokens", "length"), [([], 1), ([1], 2), ([1, 2, 3], 4)])
def test_the_length_counts_eos_and_not_bos(tokens, length):
    steps = [(tuple(tokens[:i]), {t: 0.5, END: 0}) for i, t in enumerate(tokens)]
    table = path(*steps)
    ((found,),) = search(Tables([table]), torch.tensor([9]), END, 1, alpha=0.6)
    log_p = len(tokens) * math.log(0.5)
    assert found.tokens == tokens and found.log_prob == pytest.approx(log_p)
    assert found.score == pytest.approx(log_p / ((5 + length) / 6) ** 0.6)


def test_what_never_ends_gives_the_best_that_is_unfinished():
    def table(prefix):
        return [-math.inf, math.log(0.6), math.log(0.4)]

    (found,) = search(Tables([table]), torch.tensor([5]), END, 4, 0.6, n_best=3)
    assert [h.tokens for h in found][0] == [1] * 5
    assert not any(h.ended for h in found)
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)


def test_what_ended_comes_before_what_was_cut():
    table = path(((), {1: 0.9, END: 0.1}), *[((1,) * n, {1: 1.0}) for n in range(1, 9)])
    (found,) = search(Tables([table]), torch.tensor([6]), END, 3, 0.0, n_best=2)
    assert [(h.ended, h.tokens) for h in found] == [(True, []), (False, [1] * 6)]
    (found,) = search(Tables([table]), torch.tensor([6]), END, 3, 0.0)
    assert found[0].tokens == []


def test_n_best_is_sorted_and_distinct():
    tables = [random_table(seed) for seed in range(50)]
    found = search(Tables(tables), torch.full((50,), 7), END, 8, 0.6, n_best=8)
    for some in found:
        assert len({tuple(h.tokens) for h in some if h.ended}) == sum(
            h.ended for h in some
        )
        keys = [(h.ended, h.score) for h in some]
        assert keys == sorted(keys, reverse=True) and len(some) == 8
    best = search(Tables(tables), torch.full((50,), 7), END, 8, 0.6)
    assert [b[0].tokens for b in best] == [some[0].tokens for some in found]


def test_constraints_on_tables():
    tables = [random_table(seed, sharpness=2.0) for seed in range(60)]
    limits = torch.full((60,), 4)
    prefixes = [[1 + (seed + i) % 3 for i in range(seed % 4)] for seed in range(60)]
    for least in (0, 2):
        predictor = Constrained(Tables(tables), END, least, prefixes)
        found = search(predictor, limits, END, 4**4, 0.6)
        for (best,), table, prefix in zip(found, tables, prefixes, strict=True):
            expected = max(
                (ended, penalised(log_p, len(tokens) + ended, 0.6), tokens)
                for tokens, log_p, ended in every_output(table, 4)
                if tokens[: len(prefix)] == tuple(prefix) and len(tokens) >= least
            )
            assert_equal([best], [expected])


def test_options_that_make_no_sense():
    predictor, limit = Tables([random_table(0)]), torch.tensor([5])
    for options, message in (
        ({"beam_size": 0}, "beam_size is 0"),
        ({"n_best": 0}, "n_best is 0: it must be from 1 to 4"),
        ({"n_best": 5}, "n_best is 5: it must be from 1 to 4"),
        ({"alpha": -0.1}, "alpha is -0.1"),
        ({"alpha": math.nan}, "alpha is nan"),
    ):
        with pytest.raises(ValueError, match=message):
            search(predictor, limit, END, **options)
    for options, message in (
        ({"n_samples": 0}, "n_samples is 0"),
        ({"temperature": 0}, "temperature is 0"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            draw(predictor, limit, END, **options)


def test_a_model_that_says_nan_is_named():
    with pytest.raises(ValueError, match="NaN"):
        search(Tables([lambda prefix: [math.nan] * 3]), torch.tensor([5]), END)


def test_a_sample_of_nan_is_named():
    with pytest.raises(ValueError, match="NaN"):
        draw(Tables([lambda prefix: [math.nan, -1.0, -2.0]]), torch.tensor([5]), END)


# Samples


def chi_square(counts, expected, n):
    assert set(counts) <= set(expected)
    return sum((counts[key] - n * p) ** 2 / (n * p) for key, p in expected.items())


def test_samples_follow_the_probabilities():
    table, n = random_table(3, n_tokens=3, sharpness=1.0), 20_000
    expected = {tokens: math.exp(log_p) for tokens, log_p, _ in every_output(table, 3)}
    generator = torch.Generator().manual_seed(0)
    (found,) = draw(Tables([table]), torch.tensor([3]), END, n, generator=generator)
    counts = Counter(tuple(h.tokens) for h in found)
    assert len(found) == n and len(expected) == 15
    assert chi_square(counts, expected, n) < 36.1  # 14 degrees of freedom, p = 0.001
    for h in found[:200]:
        assert h.log_prob == pytest.approx(
            math.log(expected[tuple(h.tokens)]), abs=1e-4
        )


def test_temperature_sharpens_and_flattens():
    table, n = path(((), {1: 0.6, 2: 0.3, 3: 0.1})), 20_000
    for temperature in (0.5, 2.0):
        generator = torch.Generator().manual_seed(1)
        (found,) = draw(
            Tables([table]), torch.tensor([3]), END, n, temperature, generator=generator
        )
        weights = [p ** (1 / temperature) for p in (0.6, 0.3, 0.1)]
        expected = {(i + 1,): w / sum(weights) for i, w in enumerate(weights)}
        counts = Counter(tuple(h.tokens) for h in found)
        assert chi_square(counts, expected, n) < 13.8  # 2 degrees, p = 0.001


def test_near_temperature_zero_a_sample_is_greedy():
    tables = [random_table(seed) for seed in range(40)]
    limits = torch.full((40,), 6)
    greedy = search(Tables(tables), limits, END, 1)
    drawn = draw(Tables(tables), limits, END, 5, temperature=1e-3)
    for (best,), some in zip(greedy, drawn, strict=True):
        assert [h.tokens for h in some] == [best.tokens] * 5


@pytest.mark.parametrize(
    ("options", "possible"),
    [
        ({"top_k": 1}, {1}),
        ({"top_k": 2}, {1, 2}),
        ({"top_k": 9}, {1, 2, 3}),
        ({"top_p": 0.5}, {1}),
        ({"top_p": 0.7}, {1, 2}),
        ({"top_p": 0.95}, {1, 2, 3}),
        ({"top_p": 1.0}, {1, 2, 3}),
        ({"top_k": 2, "top_p": 0.1}, {1}),
    ],
)
def test_cuts_leave_the_most_probable(options, possible):
    table = path(((), {2: 0.3, 1: 0.6, 3: 0.1}))
    generator = torch.Generator().manual_seed(0)
    (found,) = draw(
        Tables([table]), torch.tensor([3]), END, 500, generator=generator, **options
    )
    assert {h.tokens[0] for h in found} == possible


def test_samples_of_a_transformer():
    model, sources = trained(), sentences(1)
    generator = torch.Generator().manual_seed(0)
    found = sample(model, rectangle(sources), 3, generator=generator)
    assert [len(some) for some in found] == [3] * 7
    for place in range(3):
        outputs = [some[place] for some in found]
        kept = [i for i, h in enumerate(outputs) if h.ended]
        expected = log_probability(
            model, rectangle(sources), [h.tokens for h in outputs]
        )
        for i in kept:
            assert outputs[i].log_prob == pytest.approx(expected[i], abs=1e-3)
    greedy = greedy_search(model, rectangle(sources))
    cold = sample(model, rectangle(sources), temperature=1e-4)
    assert [one.tokens for (one,) in cold] == greedy
    assert sample(model, rectangle(sources)[:0]) == []


# Beam search of Transformers


@functools.cache
def trained(seed=0):
    """A model that half knows how to say a row backwards: outputs that vary and end."""
    torch.manual_seed(seed)
    sizes = {"d_model": 32, "n_layers": 2, "n_heads": 2, "d_ff": 64, "max_length": 90}
    model = Transformer(TransformerConfig(23, dropout=0.0, **sizes))
    adam = torch.optim.Adam(model.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(seed)
    for step in range(60):
        lengths = torch.randint(0, 9, (48,), generator=generator).tolist()
        rows = sentences(1000 * seed + step, lengths)
        tgt = pad([[BOS, *row[::-1]] for row in rows], PAD)
        labels = pad([[*row[::-1], EOS] for row in rows], PAD).flatten()
        logits = model(rectangle(rows), tgt).flatten(0, 1)
        torch.nn.functional.cross_entropy(logits, labels, ignore_index=PAD).backward()
        adam.step()
        adam.zero_grad()
    return model.eval()


def test_the_trained_model_ends_at_different_lengths():
    found = beam_search(trained(), rectangle(sentences(1)), n_best=4)
    lengths = {len(h.tokens) for some in found for h in some if h.ended}
    assert len(lengths) > 4 and all(some[0].ended for some in found[:4])


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_a_beam_of_one_is_greedy(changes, alpha):
    for seed in range(3):
        model, src = toy(seed, {EOS: 3.0}, **changes), rectangle(sentences(seed))
        found = beam_search(model, src, 1, alpha)
        assert [best.tokens for (best,) in found] == greedy_search(model, src)


def uncached(model, src):
    """A predictor that knows no cache: every prefix is decoded whole, alone."""

    @torch.no_grad()
    def table(prefix):
        tgt = torch.tensor([[BOS, *prefix]])
        log_p = model(src, tgt)[0, -1].log_softmax(-1).tolist()
        log_p[PAD] = log_p[BOS] = -math.inf
        return log_p

    return table


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_cached_equals_uncached(changes):
    """The beam's shared cache against whole prefixes, one sentence at a time."""
    model, sources = toy(0, {EOS: 4.0}, **changes), sentences(0, (3, 0, 6, 1))
    found = beam_search(model, rectangle(sources), 4, 0.6, 4, extra_length=8)
    for some, ids in zip(found, sources, strict=True):
        tables = Tables([uncached(model, rectangle([ids]))])
        limit = torch.tensor([len(ids) + 8])
        (expected,) = search(tables, limit, EOS, 4, 0.6, 4)
        assert_equal(some, as_tuples(expected))


@pytest.mark.parametrize("extra_columns", [0, 1, 9])
@pytest.mark.parametrize("beam_size", [2, 5])
def test_a_batched_beam_equals_one_by_one(extra_columns, beam_size):
    model, sources = trained(), sentences(1)

    def run(src):
        return beam_search(model, src, beam_size, 0.6, beam_size)

    alone = [run(rectangle([ids]))[0] for ids in sources]
    for order in (sources, sources[::-1]):
        found = run(rectangle(order, extra_columns))
        if order is not sources:
            found = found[::-1]
        for some, expected in zip(found, alone, strict=True):
            assert_equal(some, as_tuples(expected))


def test_log_probabilities_are_those_of_one_pass():
    model, src = trained(), rectangle(sentences(1))
    found = beam_search(model, src, 3, 0.6)
    outputs = [best.tokens for (best,) in found]
    expected = log_probability(model, src, outputs)
    assert sum(best.ended for (best,) in found) > 4
    for (best,), value in zip(found, expected, strict=True):
        if not best.ended:  # without the eos that `log_probability` counts
            continue
        assert best.log_prob == pytest.approx(value, abs=1e-3)
        assert best.score == pytest.approx(
            value / length_penalty(len(best.tokens) + 1, 0.6), abs=1e-3
        )
    with pytest.raises(ValueError, match="6 outputs for 7 sentences"):
        log_probability(model, src, outputs[:-1])


def test_a_beam_that_never_ends_stops_at_each_sentences_limit():
    sources = sentences()
    found = beam_search(toy(0, {EOS: -1e9}), rectangle(sources), 3, extra_length=8)
    assert [len(best.tokens) for (best,) in found] == [len(ids) + 8 for ids in sources]
    assert not any(best.ended for (best,) in found)


def test_a_beam_of_empty_sentences():
    model = toy(2)
    assert len(beam_search(model, rectangle([[]]))) == 1
    assert beam_search(model, torch.zeros(0, 4, dtype=torch.int64)) == []
    found = beam_search(toy(0, {EOS: 1e9}), rectangle(sentences()), 4)
    assert [(best.tokens, best.ended) for (best,) in found] == [([], True)] * 7


def test_padding_and_bos_are_never_in_a_beam():
    model = toy(0, {PAD: 1e3, BOS: 1e3, EOS: 2.0})
    for some in beam_search(model, rectangle(sentences()), 4, 0.6, 4, extra_length=9):
        assert not {PAD, BOS, EOS} & {token for h in some for token in h.tokens}
    model = toy(0, {PAD: 9.0, BOS: 9.0, EOS: 2.0})
    (some,) = sample(model, rectangle([[5]]), 50, extra_length=9)
    assert not {PAD, BOS, EOS} & {token for h in some for token in h.tokens}


def test_forced_prefixes_are_kept():
    model, sources = trained(), sentences(1)
    free = beam_search(model, rectangle(sources), 3)
    prefixes = [[], [7], [8, 9, 10], [], [11, 4], [5] * 6, [6]]
    found = beam_search(model, rectangle(sources), 3, n_best=3, prefixes=prefixes)
    for some, prefix, (best,) in zip(found, prefixes, free, strict=True):
        assert all(h.tokens[: len(prefix)] == prefix for h in some)
        if not prefix:
            assert some[0].tokens == best.tokens
    own = [best.tokens[:2] for (best,) in free]
    again = beam_search(model, rectangle(sources), 1, prefixes=own)
    for (best,), ids in zip(again, own, strict=True):
        assert best.tokens[: len(ids)] == ids
    scored = log_probability(model, rectangle(sources), [s[0].tokens for s in found])
    for some, value in zip(found, scored, strict=True):  # of the prefix too
        if some[0].ended:
            assert some[0].log_prob == pytest.approx(value, abs=1e-3)


@pytest.mark.parametrize(
    ("prefixes", "message"),
    [
        ([[5]], "1 prefixes for 2 sentences"),
        ([[5], [EOS]], "prefix 1 has a token 2"),
        ([[BOS, 5], []], "prefix 0 has a token 1"),
        ([[], [23]], "prefix 1 has a token 23"),
        ([[-1], []], "prefix 0 has a token -1"),
        ([[], [5] * 9], "prefix 1 has 9 tokens, above the limit of 8"),
    ],
)
def test_a_prefix_that_cannot_be(prefixes, message):
    with pytest.raises(ValueError, match=message):
        beam_search(toy(), rectangle([[5], []]), prefixes=prefixes, extra_length=8)


@pytest.mark.parametrize("least", [1, 4, 9])
def test_minimum_length(least):
    model, src = trained(), rectangle(sentences())
    free = [best.tokens for (best,) in beam_search(model, src)]
    assert min(map(len, free)) < least
    found = beam_search(model, src, n_best=4, min_length=least)
    assert min(len(h.tokens) for some in found for h in some) == least


def test_an_ensemble_of_a_model_with_itself_is_the_model():
    model, src = trained(), rectangle(sentences(1))
    alone = beam_search(model, src, 4, 0.6, 4)
    for some, expected in zip(
        beam_search([model] * 3, src, 4, 0.6, 4), alone, strict=True
    ):
        assert_equal(some, as_tuples(expected))


def test_an_ensemble_averages_probabilities():
    models = [trained(seed) for seed in range(3)]
    src = rectangle(sentences(1, (4,)))
    outputs = [[5, 9, 14]]
    tgt, labels = torch.tensor([[BOS, 5, 9, 14]]), [5, 9, 14, EOS]
    with torch.no_grad():
        mean = sum(model(src, tgt)[0].softmax(-1) for model in models) / 3
    expected = sum(mean[t, label].log().item() for t, label in enumerate(labels))
    assert log_probability(models, src, outputs)[0] == pytest.approx(expected, 1e-4)
    ((best,),) = beam_search(models, src, 3)
    (value,) = log_probability(models, src, [best.tokens])
    assert best.ended and best.log_prob == pytest.approx(value, abs=1e-3)


def test_an_ensemble_has_one_vocabulary():
    other = Transformer(TransformerConfig(24, 16, 1, 2))
    with pytest.raises(
        ValueError, match="vocab_size is 23 in model 1 and 24 in model 2"
    ):
        beam_search([toy(), other], rectangle([[5]]))
    with pytest.raises(ValueError, match="no models"):
        beam_search([], rectangle([[5]]))


def test_the_memory_is_encoded_once_and_shared_by_the_beam():
    model, sources = copy.deepcopy(trained()), sentences(1)
    encoded, projected, queried = [], [], []
    layer = model.decoder.layers[0]
    model.encoder.layers[0].register_forward_pre_hook(
        lambda module, args: encoded.append(args[0].size(0))
    )
    layer.cross_attention.w_kv.register_forward_pre_hook(
        lambda module, args: projected.append(args[0].size(0))
    )
    layer.register_forward_pre_hook(
        lambda module, args: queried.append(args[0].shape[:2])
    )
    beam_search(model, rectangle(sources), 5)
    assert encoded == projected == [len(sources)]
    rows, widths = zip(*queried, strict=True)
    assert widths[0] == 1 and max(widths) == 5
    assert list(rows) == sorted(rows, reverse=True) and rows[-1] < rows[0]


def test_the_mode_of_every_model_comes_back():
    models = [toy(seed, {EOS: 3.0}, dropout=0.5) for seed in range(2)]
    expected = beam_search(models, rectangle(sentences()))
    models[0].train()
    assert beam_search(models, rectangle(sentences())) == expected
    assert [model.training for model in models] == [True, False]


def test_a_beam_in_bfloat16_and_with_the_readable_attention():
    found = beam_search(toy(0, {EOS: 3.0}).bfloat16(), rectangle(sentences()))
    assert len(found) == 7 and all(h.log_prob <= 0 for (h,) in found)
    fused, src = toy(0, {EOS: 3.0}), rectangle(sentences())
    readable = Transformer(fused.config, scaled_dot_product_attention)
    readable.load_state_dict(fused.state_dict())
    fused.bias = {}
    for a, b in zip(
        beam_search(fused, src, extra_length=9),
        beam_search(readable.eval(), src, extra_length=9),
        strict=True,
    ):
        assert_equal(a, as_tuples(b))


# Attention


@pytest.mark.parametrize("kernel", [fused_attention, scaled_dot_product_attention])
def test_attention_rows_sum_to_one_over_their_keys(kernel):
    model, sources = trained(), sentences(1)
    outputs = greedy_search(model, rectangle(sources, 3))
    with replaced_attention(model, dict.fromkeys(attention_places(model), kernel)):
        found = attention_maps(model, rectangle(sources, 3), outputs)
        (alone,) = attention_maps(model, rectangle(sources[2:3]), outputs[2:3])
    n, h = model.config.n_layers, model.config.n_heads
    for maps, ids, output in zip(found, sources, outputs, strict=True):
        s, t = len(ids) + 1, len(output) + 1
        sizes = {"encoder": (s, s), "decoder": (t, t), "cross": (t, s)}
        for kind, size in sizes.items():
            weights = getattr(maps, kind)
            assert weights.shape == (n, h, *size)
            torch.testing.assert_close(weights.sum(-1), torch.ones(n, h, size[0]))
        assert torch.equal(maps.decoder, maps.decoder.tril())
    for batched, one in zip(found[2], alone, strict=True):
        torch.testing.assert_close(batched, one, atol=1e-5, rtol=1e-4)


def test_attention_maps_are_those_of_the_forward_pass():
    """They are what each layer multiplies the values of its keys by."""
    model, src, output = toy(3), rectangle([[5, 6, 7]]), [8, 9]
    places, calls, hooks = attention_places(model), {}, []
    for place, attention in places.items():

        def keep(module, args, result, place=place):
            calls[place] = args, result

        hooks.append(attention.register_forward_hook(keep))
    with torch.no_grad():
        model(src, torch.tensor([[BOS, *output]]))
    for hook in hooks:
        hook.remove()
    (maps,) = attention_maps(model, src, [output])
    assert len(places) == 3 * model.config.n_layers
    for (kind, layer), ((x, *others), expected) in calls.items():
        attention, weights = places[kind, layer], getattr(maps, kind)[layer]
        with torch.no_grad():
            cross = kind == "cross"
            packed = attention.w_kv(others[0]) if cross else attention.w_qkv(x)
            *_, value = packed.split(attention.widths, dim=-1)
            heads = weights @ attention.split_heads(value)[0]  # (H, T, d_v)
            actual = attention.w_o(heads.transpose(0, 1).flatten(1))
        torch.testing.assert_close(actual, expected[0], atol=1e-4, rtol=1e-4)


def test_the_model_keeps_nothing():
    model, src = trained(), rectangle(sentences(1))
    before = pickle.dumps(model.state_dict())
    functions = [at.attention for at in attention_places(model).values()]
    outputs = [best.tokens for (best,) in beam_search(model, src)]
    model.train()
    attention_maps(model, src, outputs)
    assert model.training
    model.eval()
    sample(model, src)
    assert functions == [at.attention for at in attention_places(model).values()]
    assert not any(
        torch.is_tensor(v) for m in model.modules() for v in vars(m).values()
    )
    copied = copy.deepcopy(model)
    assert greedy_search(copied, src) == greedy_search(model, src)
    assert pickle.dumps(model.state_dict()) == before
    pickle.dumps(Transformer(model.config))


def test_another_function_is_there_only_for_a_while():
    model, src = toy(), rectangle([[5, 6, 7], [8]])
    tgt = torch.tensor([[BOS, 9, 10], [BOS, 11, PAD]])

    def nothing(query, key, value, mask=None, dropout=0.0):
        return 0 * fused_attention(query, key, value, mask)

    with torch.no_grad():
        before = model(src, tgt)
        with (
            pytest.raises(ZeroDivisionError),
            replaced_attention(model, {("cross", 1): nothing}),
        ):
            changed = model(src, tgt)
            (maps, _) = attention_maps(model, src, [[9, 10], [11]])
            raise ZeroDivisionError
        assert torch.equal(model(src, tgt), before)
    assert not torch.allclose(changed, before, atol=1e-3)
    assert maps.cross[0].any() and not maps.cross[1].any()


@pytest.mark.parametrize("place", [("encoder", 2), ("cross", -1), ("self", 0)])
def test_there_is_such_a_place(place):
    model = toy()
    functions = {("decoder", 0): None, place: None}
    with (
        pytest.raises(ValueError, match="a layer from 0 to 1") as error,
        replaced_attention(model, functions),
    ):
        pass
    assert repr(place) in str(error.value)
    assert model.decoder.layers[0].self_attention.attention is fused_attention


def test_there_is_an_output_for_each_sentence():
    with pytest.raises(ValueError, match="2 outputs for 1 sentences"):
        attention_maps(toy(), rectangle([[5]]), [[6], [7]])
